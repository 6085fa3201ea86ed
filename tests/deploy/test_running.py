"""The chart's manifests at work: a coordinator, a pool of agents that joins with its Secret, tasks run to verified, a
drain in the middle of one, probes, backup and metrics. A cluster is not needed; root is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import unittest
from pathlib import Path

from chart import metrics, one, render
from pods import Node, Pod, entrypoint, health_check, wait_for

ADAPTER = """
name = "fixer"
command = "sh"
args = ["-c", "until [ -e /var/lib/kage/adapters/go ]; do sleep 0.05; done; echo done >done.txt"]
[prompt]
pass = "stdin"
"""
VALUES = {
    "coordinator": {"config": "keep_days = 3\n", "publicNames": ["kage.example.com"]},
    "backup": {"keep": 1},
    "agents": {
        "pools": {
            "small": {
                "joinToken": {"secret": "join", "key": "token"},
                "labels": {"pool": "small"},
                "slots": 1,
                "drainSeconds": 45,
                "adapters": {"fixer.toml": ADAPTER},
                "envFromSecrets": ["keys"],
            }
        }
    },
    "serviceMonitor": {"enabled": True},
}


@unittest.skipIf(os.geteuid() != 0, "networks and mounts of pods need root")
class Running(unittest.TestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.addCleanup(self.node.close)
        self.manifests, self.notes = render(VALUES)

    def pod(self, name: str, template: dict, entry: list[str], **more: object) -> Pod:
        """Starts a pod; claims are shared, emptyDirs are its own, ConfigMaps are files."""
        volumes: dict[str, Path] = {"state": self.node.volume("state-kage-coordinator-0")}
        for volume in template["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                folder = self.node.volume(volume["persistentVolumeClaim"]["claimName"])
            elif "configMap" in volume:
                folder = self.node.volume(f"map-{volume['configMap']['name']}")
                for file, text in one(self.manifests, "ConfigMap", volume["configMap"]["name"])["data"].items():
                    (folder / file).write_text(text)
            else:
                folder = self.node.volume(f"{name}-{volume['name']}")
            volumes[volume["name"]] = folder
        pod = Pod(self.node, name, template, volumes, entry, **more)  # type: ignore[arg-type]
        self.addCleanup(pod.kill)
        return pod

    def coordinator(self) -> Pod:
        template = one(self.manifests, "StatefulSet", "kage-coordinator")["spec"]["template"]
        pod = self.pod("kage-coordinator-0", template, entrypoint("coordinator"), names=("kage-coordinator",))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            pod.until_probe(probe)
        pod.ok(*health_check("coordinator"))
        return pod

    def agent(self, name: str, token: str) -> Pod:
        template = one(self.manifests, "Deployment", "kage-agent-small")["spec"]["template"]
        secrets = {"join": {"token": token}, "keys": {"SOME_KEY": "value"}}
        pod = self.pod(name, template, entrypoint("agent"), secrets=secrets)
        pod.until_probe("readinessProbe")
        pod.ok(*health_check("agent"))
        return pod

    def from_notes(self, coordinator: Pod, role: str) -> str:
        """Runs the command of the notes that makes a token, and returns the token."""
        (command,) = re.findall(rf"-- (kage token create --role {role} .*)", self.notes)
        made = coordinator.ok("sh", "-c", f"{command} --format json 2>/dev/null")
        return json.loads(made)["join_token" if role == "agent" else "bearer"]

    def connected(self, coordinator: Pod) -> list[dict]:
        listed = json.loads(coordinator.ok("sh", "-c", "kage agent ls --format json 2>/dev/null"))
        agents = listed if isinstance(listed, list) else listed["agents"]
        return [agent for agent in agents if agent["state"] == "AGENT_STATE_CONNECTED"]

    def test_a_release_works(self) -> None:
        coordinator = self.coordinator()
        address = self.node.address(coordinator.network)
        silent = self.node.connect(address, 7443)
        self.addCleanup(silent.kill)
        certificate = coordinator.ok("sh", "-c", "cat /var/lib/kage/state/coordinator/tls/ca.pem")
        self.assertIn("BEGIN CERTIFICATE", certificate)
        self.from_notes(coordinator, "submit")
        token = self.from_notes(coordinator, "agent")

        agents = {name: self.agent(name, token) for name in ("kage-agent-small-a", "kage-agent-small-b")}
        seen = wait_for("two agents", lambda: len(found := self.connected(coordinator)) == 2 and found)
        self.assertEqual({agent["name"] for agent in seen}, set(agents))
        self.assertEqual({agent["labels"]["pool"] for agent in seen}, {"small"})

        # A person's repository; any machine that reaches the coordinator would do.
        coordinator.ok("sh", "-euc", "git init -q /tmp/work && cd /tmp/work && git config user.name a && "
                       "git config user.email a@example.com && echo 'grep -q done *.txt' >check.sh && "
                       "git add check.sh && git commit -q -m base")
        task = "cd /tmp/work && exec kage run --with fixer --agents pool=small --verify 'sh check.sh' 'do it'"
        go = self.node.folder / "map-kage-agent-small-adapters" / "go"
        go.touch()
        coordinator.ok("sh", "-c", task)

        # A pod ends while its session runs, and drains: the session finishes there, and the other pod checks it.
        go.unlink()
        running = subprocess.Popen(coordinator.command("sh", "-c", task), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", text=True)
        self.addCleanup(running.kill)
        busy = wait_for("a busy agent", lambda: [a for a in self.connected(coordinator) if a.get("busy")])[0]["name"]
        started = self.metric(coordinator, "kage_attempts_started_total")
        hook = subprocess.Popen(agents[busy].command(
            *agents[busy].container["lifecycle"]["preStop"]["exec"]["command"]), cwd="/")
        self.addCleanup(hook.kill)
        wait_for("the drain", lambda: busy not in {agent["name"] for agent in self.connected(coordinator)})
        self.assertIsNone(running.poll(), "the drain ended the session")
        go.touch()
        said, _ = running.communicate(timeout=60)
        self.assertEqual(running.returncode, 0, said)
        self.assertEqual(agents[busy].wait(), 0, agents[busy].log.read_text())
        # The check is one more; the session was not run again.
        self.assertEqual(self.metric(coordinator, "kage_attempts_started_total"), started + 1)

        # A container that starts anew in its pod is still the same agent, and uses no token.
        agents[busy].kill()
        self.agent(busy, "kage1.used.up")
        self.assertEqual(wait_for("its return", lambda: len(a := self.connected(coordinator)) == 2 and len(a)), 2)

        self.backups()
        silent.wait(60)
        self.board_and_rules(coordinator)
        self.assertEqual(coordinator.terminate(), 0, coordinator.log.read_text())

    def scrape(self, coordinator: Pod) -> str:
        """What Prometheus gets, as the ServiceMonitor says."""
        if not hasattr(self, "view"):
            made = coordinator.ok("sh", "-c", "kage token create --role view --format json 2>/dev/null")
            self.view = json.loads(made)["bearer"]
        (endpoint,) = one(self.manifests, "ServiceMonitor", "kage-coordinator")["spec"]["endpoints"]
        (port,) = one(self.manifests, "Service", "kage-coordinator")["spec"]["ports"]
        self.assertEqual(port["name"], endpoint["port"])
        url = f"{endpoint['scheme']}://{self.node.address(coordinator.network)}:{port['port']}{endpoint['path']}"
        status, text = self.node.get(url, 10, self.view)
        self.assertEqual(status, 200)
        return text

    def metric(self, coordinator: Pod, name: str) -> float:
        lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.scrape(coordinator), re.MULTILINE)
        return sum(float(value) for value in lines)

    def board_and_rules(self, coordinator: Pod) -> None:
        """Every metric that a query names is there."""
        there = set(re.findall(r"^(kage_\w+)", self.scrape(coordinator), re.MULTILINE))
        self.assertEqual(metrics() - there, set())

    def backups(self) -> None:
        """The job makes a backup, and removes what is too old or was cut off."""
        folder = self.node.volume("kage-backup")
        for old in ("2020-01-01T00-00-00Z", "2020-01-02T00-00-00Z"):
            (folder / old).mkdir()
        (folder / "2020-01-01T00-00-00Z" / "backup.json").touch()
        for path in [*folder.iterdir(), *folder.glob("*/*")]:
            os.chown(path, 10001, 10001)
        job = one(self.manifests, "CronJob", "kage-backup")["spec"]["jobTemplate"]["spec"]["template"]
        pod = self.pod("kage-backup-1", job, [])
        self.assertEqual(pod.wait(), 0, pod.log.read_text())
        (new,) = folder.iterdir()
        self.assertTrue((new / "backup.json").is_file())
        self.assertNotIn("2020", new.name)


if __name__ == "__main__":
    unittest.main()
