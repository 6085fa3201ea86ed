"""What the tests run against: a real coordinator and the example agent as processes, and
a proxy whose connections can be cut. Nothing is asserted here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import kage

PROGRAM = os.environ.get("KAGE_PROGRAM", "")
AGENT = Path(__file__).resolve().parents[1] / "examples" / "agent.py"
DEADLINE = 30.0

Found = TypeVar("Found")


def wait_for(what: str, look: Callable[[], Found]) -> Found:
    """Looks until it sees something, that is not nothing. Fails loudly at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {DEADLINE:.0f} s")
        time.sleep(0.02)
    return found


class Coordinator:
    """A `kage coordinator` with a data directory of its own. It keeps its port when it is
    started again."""

    def __init__(self, tls: bool = False, log: str = "warn") -> None:
        self._tls = ["--tls"] if tls else []
        self._log = log
        self._folder = tempfile.TemporaryDirectory(prefix="kage-python-")
        self._data = Path(self._folder.name) / "data"
        self._listen = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        endpoint = self._data / "endpoint"
        endpoint.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [PROGRAM, "coordinator", "--data-dir", str(self._data), "--listen", self._listen, *self._tls]
            + ["--token-agents", "run,verify"],
            env={**os.environ, "KAGE_LOG": self._log},
        )
        self.url = wait_for("endpoint", lambda: endpoint.read_text().strip() if endpoint.exists() else "")
        self._listen = urlsplit(self.url).netloc
        self.token_file = self._data / "token"
        self.token = self.token_file.read_text().strip()
        self.ca_file = self._data / "tls" / "ca.pem" if self._tls else None

    def kill(self) -> None:
        """Kills it without any warning."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        end(self._process)
        self._folder.cleanup()


class Agent:
    """The example agent as a process."""

    def __init__(self, coordinator: Coordinator, token_file: Path | None = None) -> None:
        token_file = token_file or coordinator.token_file
        trust: list[str | Path] = ["--ca-file", coordinator.ca_file] if coordinator.ca_file else []
        self._process = subprocess.Popen(
            [sys.executable, AGENT, "--url", coordinator.url, "--token-file", token_file, "--name", "py", *trust],
        )

    def close(self) -> int:
        """Asks it to drain, and says how it ended."""
        return end(self._process)

    def ask_to_end(self) -> None:
        """Sends the signal of `close` and does not wait."""
        self._process.terminate()

    def wait(self) -> int:
        """Says how it ended by itself."""
        try:
            return self._process.wait(DEADLINE)
        finally:
            self._process.kill()


def end(process: subprocess.Popen[bytes]) -> int:
    """Ends a process politely, or else not."""
    process.terminate()
    try:
        return process.wait(DEADLINE)
    finally:
        process.kill()


class Proxy:
    """Passes connections on to a coordinator until they are cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._to = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """Cuts every connection that is open now."""
        with self._lock:
            open_now, self._open = self._open, []
        for connection in open_now:
            # The other side may have been quicker.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Wakes `accept`, which closing alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._to)
            with self._lock:
                self._open += [client, server]
                self.connections += 1
            for source, sink in [(client, server), (server, client)]:
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Until one of the two ends; then both do, and the thread in the other direction."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()


def shell_task(command: str) -> kage.TaskSpec:
    """A task for the example agent, which is tried once."""
    return kage.TaskSpec(
        prompt=command,
        assignments=[kage.Assignment(name="one", adapter="py-shell")],
        policy=kage.Policy(max_attempts=1),
    )
