#!/usr/bin/env python3
"""Runs the contract of the clients: fills a coordinator, starts an agent, runs each command.

    run.py COMMAND...

Each command is a line for the shell. It finds in the file that KAGE_CONTRACT names what
contract.json says, and `url`, `token`, `cutting` (the same coordinator through a proxy),
`cut` (a port: who connects there cuts what goes through the proxy), `names` (what each list
has), and `folder` (a place of its own with a repository, and for GATE). Needs KAGE_PROGRAM.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "python" / "tests"))

import kage  # noqa: E402
from cluster import DEADLINE, PROGRAM, Coordinator, Proxy, end, wait_for  # noqa: E402
from kage.client import bearer, channel  # noqa: E402
from kage.v1 import access_service_pb2 as access  # noqa: E402
from kage.v1 import access_service_pb2_grpc  # noqa: E402
from kage.v1 import agent_service_pb2 as control  # noqa: E402
from kage.v1 import agent_service_pb2_grpc  # noqa: E402

MANIFEST = """
name = "shell"
command = "sh"
args = ["-c", "{prompt}"]
[prompt]
pass = "arg"
"""
PROJECT = "many"


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Contract", "-c", "user.email=contract@example.org"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, stdout=subprocess.DEVNULL)


def repository(folder: Path) -> Path:
    """A repository with one commit."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "read.me").write_text("the base\n")
    git(folder, "add", "read.me")
    git(folder, "commit", "--quiet", "--message", "base")
    return folder


def come_and_go(stub: Any, metadata: Any, number: int, name: str) -> None:
    """An agent that is known from now on, and not there any more."""
    id = f"{number:032x}"
    hello = control.Hello(agent_id=id, boot_id=id, protocol_min=1, protocol_max=1, name=name, slots=1)
    welcomed = threading.Event()

    def says() -> Iterator[control.ConnectRequest]:
        yield control.ConnectRequest(hello=hello)
        welcomed.wait(DEADLINE)

    call = stub.Connect(says(), metadata=metadata)
    if not next(call).HasField("welcome"):
        raise AssertionError(f"the agent {name} was not let in")
    welcomed.set()
    call.cancel()


def fill(coordinator: Coordinator, folder: Path, count: int) -> dict[str, list[str]]:
    """Makes that many items of every list, and says what they are called there."""
    numbers = [f"n{number:03}" for number in range(count)]
    spec = kage.TaskSpec(prompt="true", assignments=[kage.Assignment(name="a", adapter="nobody")])
    names: dict[str, list[str]] = {"tasks": [], "projects": [PROJECT], "repositories": numbers}
    metadata = bearer(coordinator.token)
    with kage.connect(coordinator.url, coordinator.token) as client, channel(coordinator.url) as raw:
        for number in numbers:
            spec.project = PROJECT
            names["tasks"].append(client.submit(spec, wait_for_agent=True).id)
            client.push(folder, number, project=PROJECT)
            spec.project = number
            client.submit(spec, wait_for_agent=True)
        tokens: Any = access_service_pb2_grpc.AccessServiceStub(raw)
        agents: Any = agent_service_pb2_grpc.AgentServiceStub(raw)
        for at, number in enumerate(numbers, 1):
            tokens.CreateToken(access.CreateTokenRequest(role=access.ROLE_VIEW, name=number), metadata=metadata)
            come_and_go(agents, metadata, at, number)
    return {**names, "projects": [PROJECT, *numbers], "tokens": numbers, "agents": numbers}


def cuts(proxy: Proxy, listener: socket.socket) -> None:
    """Cuts the proxy's connections whenever somebody connects, until the listener is closed."""
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return
        proxy.cut()


def main() -> int:
    contract = json.loads((HERE / "contract.json").read_text())
    failed = 0
    with tempfile.TemporaryDirectory(prefix="kage-contract-") as name:
        top = Path(name)
        # Each of the agents that come and go would be a warning.
        coordinator = Coordinator(log="error")
        proxy = Proxy(coordinator.url)
        listener = socket.create_server(("127.0.0.1", 0))
        cutting = threading.Thread(target=cuts, args=(proxy, listener))
        cutting.start()
        (top / "adapters").mkdir()
        (top / "adapters" / "shell.toml").write_text(MANIFEST)
        agent = subprocess.Popen(
            [PROGRAM, "agent", "run", "--coordinator", coordinator.url, "--token-file", coordinator.token_file]
            + ["--name", "worker", "--state", top / "agent", "--adapters", top / "adapters", "--slots", "2"],
            env={**os.environ, "KAGE_LOG": "warn"},
        )
        try:
            names = fill(coordinator, repository(top / "seed"), contract["items"])
            with kage.connect(coordinator.url, coordinator.token) as client:
                wait_for("agent", lambda: [one for one in client.agents() if one.name == "worker"])
            for at, command in enumerate(sys.argv[1:]):
                folder = repository(top / f"client{at}")
                here = {"url": coordinator.url, "token": coordinator.token, "cutting": proxy.url}
                here |= {"cut": listener.getsockname()[1], "names": names, "project": PROJECT, "folder": str(folder)}
                file = top / f"client{at}.json"
                file.write_text(json.dumps({**contract, **here}))
                failed += subprocess.run(command, shell=True, env={**os.environ, "KAGE_CONTRACT": str(file)}).returncode != 0
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            cutting.join()
            proxy.close()
            end(agent)
            coordinator.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
