"""Pods of the chart as processes of this machine: their commands, environment, volumes, user and probes, each pod with
mounts, processes and a network of its own. There is no image: the program is the one that was built, and everything
else is this machine's. Needs root. Nothing is asserted here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PROGRAM = Path(os.environ.get("KAGE_PROGRAM", ""))
CONTAINERFILE = Path(__file__).resolve().parents[2] / "deploy" / "container" / "Containerfile"
DEADLINE = 60.0
# Where the program is in a pod. /var/lib is empty there but for what is mounted.
BIN = "/var/lib/bin"

Found = TypeVar("Found")


def wait_for(what: str, look: Callable[[], Found]) -> Found:
    """Looks until it sees something. Fails at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {DEADLINE:.0f} s")
        time.sleep(0.05)
    return found


def _said(target: str, what: str) -> list[str]:
    """The words of an instruction in a stage of the container file."""
    stage = CONTAINERFILE.read_text().split(f" AS {target}\n")[1].split("\nFROM ")[0].replace("\\\n", " ")
    (line,) = re.findall(rf"^{what} (\[.*\])$", stage, re.MULTILINE)
    words: list[str] = json.loads(line)
    return words


def health_check(target: str) -> list[str]:
    """The command that says whether a container of an image is healthy."""
    return _said(target, "HEALTHCHECK .* CMD")


def entrypoint(target: str) -> list[str]:
    """The entry point of an image, without its init: in a pod here the program itself is process 1."""
    words = _said(target, "ENTRYPOINT")
    assert words[:2] == ["tini", "--"], words
    return words[2:]


def run(*command: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command of this machine, with its output as text."""
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, **how)


class Node:
    """A router in a network of its own, to which every pod is plugged, and the folder of all volumes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kage-deploy-")
        self.folder = Path(self._folder.name)
        self.folder.chmod(0o755)
        self._networks: list[str] = []
        self._addresses: dict[str, str] = {}
        self.hosts = self.folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.network = self._network("n")
        forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
        run("ip", "netns", "exec", self.network, "sh", "-c", forward, check=True)

    def _network(self, suffix: str) -> str:
        name = f"kage{os.getpid()}{suffix}"
        run("ip", "netns", "add", name, check=True)
        self._networks.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up", check=True)
        return name

    def _ip(self, *arguments: str) -> None:
        run("ip", "-n", self.network, *arguments, check=True)

    def plug(self, *names: str) -> str:
        """A network for a pod that has these names, and the name of that network."""
        number = len(self._networks) + 1
        network = self._network(str(number))
        router, address = f"10.77.{number}.1", f"10.77.{number}.2"
        self._ip("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", network)
        self._ip("addr", "add", f"{router}/24", "dev", f"p{number}")
        self._ip("link", "set", f"p{number}", "up")
        run("ip", "-n", network, "addr", "add", f"{address}/24", "dev", "eth0", check=True)
        run("ip", "-n", network, "link", "set", "eth0", "up", check=True)
        run("ip", "-n", network, "route", "add", "default", "via", router, check=True)
        self._addresses[network] = address
        with self.hosts.open("a") as hosts:
            hosts.write(f"{address} {' '.join(names)}\n")
        return network

    def address(self, network: str) -> str:
        """The address of a pod."""
        return self._addresses[network]

    def volume(self, name: str) -> Path:
        """The folder of a volume, as a claim or an emptyDir with `fsGroup` gives it to the pod."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, 0, 10001)
            folder.chmod(0o2775)
        return folder

    def get(self, url: str, timeout: float, token: str = "") -> tuple[int, str]:
        """Asks from the node as a kubelet or a Prometheus does: without a look at the certificate."""
        ask = (
            "import ssl, sys, urllib.request, urllib.error\n"
            "url, timeout, token = sys.argv[1:]\n"
            "headers = {'Authorization': f'Bearer {token}'} if token else {}\n"
            "request = urllib.request.Request(url, headers=headers)\n"
            "unchecked = ssl._create_unverified_context()\n"
            "try:\n"
            "    answer = urllib.request.urlopen(request, timeout=float(timeout), context=unchecked)\n"
            "    print(answer.status); print(answer.read().decode())\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
            "except OSError as error: print(0); print(error)\n"
        )
        command = ["ip", "netns", "exec", self.network, sys.executable, "-c", ask, url, str(timeout), token]
        status, _, body = run(*command, check=True).stdout.partition("\n")
        return int(status), body

    def connect(self, address: str, port: int) -> subprocess.Popen[bytes]:
        """Opens a connection that says nothing, until the other side closes it."""
        silent = f"import socket; socket.create_connection(({address!r}, {port})).recv(1)"
        return subprocess.Popen(["ip", "netns", "exec", self.network, sys.executable, "-c", silent])

    def close(self) -> None:
        """Takes everything away."""
        for network in self._networks:
            run("ip", "netns", "del", network)
        self._folder.cleanup()


class Pod:
    """One pod of a template with one container."""

    def __init__(
        self,
        node: Node,
        name: str,
        template: dict[str, Any],
        volumes: dict[str, Path],
        entry: list[str],
        secrets: dict[str, dict[str, str]] | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.node, self.name = node, name
        self.spec = template["spec"]
        (self.container,) = self.spec["containers"]
        self._secrets = secrets or {}
        self.network = node.plug(name, *names)
        self._environment = self._variables()
        words = self.container.get("command", entry) + self.container.get("args", [])
        expand = lambda word: re.sub(r"\$\((\w+)\)", lambda found: self._environment[found[1]], word)  # noqa: E731
        command = [expand(word) for word in words]
        self.log = node.folder / f"{name}.log"
        inside = "\n".join([*self._mounts(volumes), f"exec {shlex.join(self._as_user(command))}"])
        with self.log.open("wb") as log:
            self._outer = subprocess.Popen(
                ["ip", "netns", "exec", self.network]
                + ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc", inside],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def _variables(self) -> dict[str, str]:
        variables = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": "/var/lib/kage", "LANG": "C.UTF-8"}
        for source in self.container.get("envFrom", []):
            variables |= self._secrets[source["secretRef"]["name"]]
        for variable in self.container.get("env", []):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                value = self._secrets[reference["name"]][reference["key"]]
            elif "fieldRef" in source:
                value = {"metadata.name": self.name}[source["fieldRef"]["fieldPath"]]
            else:
                value = variable["value"]
            variables[variable["name"]] = value
        return variables

    def _mounts(self, volumes: dict[str, Path]) -> list[str]:
        user = self.spec["securityContext"]["runAsUser"]
        lines = [
            "mount -t tmpfs -o mode=0755 tmpfs /var/lib",
            f"mkdir -p {BIN} /var/lib/kage",
            f"touch {BIN}/kage && mount --bind {shlex.quote(str(PROGRAM))} {BIN}/kage",
            f"chown {user}:{user} /var/lib/kage",
            f"mount --bind {self.node.hosts} /etc/hosts",
        ]
        # /tmp last: the volumes are in it.
        for mount in sorted(self.container["volumeMounts"], key=lambda mount: mount["mountPath"] == "/tmp"):
            source, at = shlex.quote(str(volumes[mount["name"]])), mount["mountPath"]
            lines.append(f"mkdir -p {at} && mount --bind {source} {at}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {at}")
        if self.container["securityContext"].get("readOnlyRootFilesystem"):
            lines += ["mount -o remount,ro /var/lib", "mount -o remount,bind,ro /"]
        return lines

    def _as_user(self, command: list[str]) -> list[str]:
        context = self.spec["securityContext"]
        return [
            "setpriv", f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}",
            f"--groups={context['fsGroup']}", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all",
            "env", "-i", *[f"{name}={value}" for name, value in self._environment.items()], *command,
        ]  # fmt: skip

    def _first(self) -> int:
        """The process 1 of the pod, seen from here."""
        # `ip` becomes `unshare`, whose child it is.
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command in the pod, as `kubectl exec` does."""
        return ["nsenter", f"--target={self._first()}", "--mount", "--pid", "--net", *self._as_user(list(command))]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the pod."""
        return run(*self.command(*command), cwd="/")

    def ok(self, *command: str) -> str:
        """Runs a command in the pod that has to pass, and returns what it printed."""
        done = run(*self.command(*command), cwd="/", stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{command} in {self.name}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def probe(self, kind: str) -> bool:
        """Whether a probe passes now."""
        probe = self.container[kind]
        timeout = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            return self.execute(*probe["exec"]["command"]).returncode == 0
        get = probe["httpGet"]
        (port,) = [port["containerPort"] for port in self.container["ports"] if port["name"] == get["port"]]
        url = f"{get['scheme'].lower()}://{self.node.address(self.network)}:{port}{get['path']}"
        return 200 <= self.node.get(url, timeout)[0] < 400

    def until_probe(self, kind: str) -> None:
        """Waits for a probe to pass; fails at once when the pod ends."""

        def look() -> bool:
            if self._outer.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._outer.returncode}:\n{self.log.read_text()}")
            return bool(self._first()) and self.probe(kind)

        wait_for(f"{kind} of {self.name}", look)

    def wait(self) -> int:
        """The exit code of the pod, when it has ended."""
        return self._outer.wait(DEADLINE)

    def pre_stop(self) -> None:
        """Runs the hook; it ends with the pod."""
        self.execute(*self.container["lifecycle"]["preStop"]["exec"]["command"])

    def terminate(self) -> int:
        """The kubelet's signal, and the exit code."""
        if first := self._first():
            os.kill(first, signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Ends whatever is left."""
        self._outer.kill()
        self._outer.wait()
