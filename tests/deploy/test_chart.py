"""What can be said of the files in deploy/ without running anything: Helm's lint, the schemas of Kubernetes, and
what fits what.
"""

from __future__ import annotations

import json
import re
import unittest
from pathlib import Path

import helm_python
import jsonschema
import kubernetes_validate
import yaml

from chart import CHART, DEPLOY, one, render

POOL = {"joinToken": {"secret": "join"}}
EVERYTHING = {
    "coordinator": {
        "publicNames": ["kage.example.com"],
        "config": 'keep_days = 3\n',
        "disruptionBudget": True,
        "storage": {"size": "1Gi", "className": "fast"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "kage", "operator": "Exists"}],
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    },
    "agents": {
        "pools": {
            "small": POOL,
            "gpu": {
                **POOL,
                "runtimeClassName": "gvisor",
                "labels": {"gpu": "true"},
                "adapters": {"own.toml": 'name = "own"'},
                "envFromSecrets": ["keys"],
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "autoscaling": {"kind": "keda"},
            },
            "cloud": {**POOL, "maxUnavailable": "25%", "autoscaling": {"kind": "hpa", "min": 0}},
            "lone": {**POOL, "maxUnavailable": None},
        }
    },
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {"matchLabels": {"people": "yes"}}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
# Of operators; their schemas are not part of Kubernetes.
FOREIGN = {"ScaledObject", "ServiceMonitor"}
# The oldest that Chart.yaml takes, and the newest that there are schemas of.
VERSIONS = ("1.27", "1.30", kubernetes_validate.latest_version())


class Chart(unittest.TestCase):
    def test_helm_finds_nothing_to_say(self) -> None:
        for values in ({}, {"agents": {"pools": {"small": POOL}}}, EVERYTHING):
            report = helm_python.lint(CHART, values, strict=True)
            worse_than_information = [message for message in report["messages"] if message["severity"] > 1]
            self.assertEqual((worse_than_information, report["errors"]), ([], []))

    def test_kubernetes_knows_every_field(self) -> None:
        for values in ({}, {"agents": {"pools": {"small": POOL}}, "backup": {"enabled": False}}, EVERYTHING):
            manifests, _ = render(values)
            names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
            self.assertEqual(len(names), len(set(names)))
            for manifest in manifests:
                for version in VERSIONS:
                    if manifest["kind"] not in FOREIGN:
                        kubernetes_validate.validate(manifest, version, strict=True)

    def test_a_wrong_field_is_found(self) -> None:
        manifest = one(render({})[0], "StatefulSet", "kage-coordinator")
        manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)

    def test_values_that_mean_nothing_are_refused(self) -> None:
        wrong = [
            {"coordinater": {}},
            {"coordinator": {"port": 443}},
            {"agents": {"pools": {"Big": POOL}}},
            {"agents": {"pools": {"a": {**POOL, "slot": 3}}}},
            {"agents": {"pools": {"a": {**POOL, "autoscaling": {"kind": "magic"}}}}},
            {"agents": {"pools": {"a": {**POOL, "adapters": {"../own.toml": ""}}}}},
            {"agents": {"coordinator": "https://host:7443"}},
            {"backup": {"keep": 0}},
        ]
        with helm_python.Chart.load(CHART) as chart:
            for values in wrong:
                with self.subTest(values=values), self.assertRaises(helm_python.HelmError):
                    chart.validate_schema(values)

    def test_a_pool_without_a_token_says_so(self) -> None:
        with self.assertRaisesRegex(helm_python.HelmError, "agents.pools.a.joinToken.secret"):
            render({"agents": {"pools": {"a": {}}}})

    def test_what_selects_finds_what_is_meant(self) -> None:
        manifests, _ = render(EVERYTHING)
        pods = {m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
                for m in manifests if m["kind"] in ("StatefulSet", "Deployment")}

        def selected(by: dict[str, str]) -> set[str]:
            return {name for name, labels in pods.items() if by.items() <= labels.items()}

        coordinator = {"kage-coordinator"}
        agents = {f"kage-agent-{pool}" for pool in EVERYTHING["agents"]["pools"]}
        self.assertEqual(set(pods), coordinator | agents)
        for manifest in manifests:
            kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
            if kind in ("StatefulSet", "Deployment", "PodDisruptionBudget"):
                self.assertEqual(selected(spec["selector"]["matchLabels"]), {name})
            if kind == "Service":
                self.assertEqual(selected(spec["selector"]), {name})
            if kind == "NetworkPolicy":
                expected = agents if name == "kage-agents" else coordinator
                self.assertEqual(selected(spec["podSelector"]["matchLabels"]), expected)
            if kind in ("ScaledObject", "HorizontalPodAutoscaler"):
                self.assertNotIn("replicas", one(manifests, "Deployment", spec["scaleTargetRef"]["name"])["spec"])
        job = one(manifests, "CronJob", "kage-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (affinity,) = job["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        self.assertEqual(selected(affinity["labelSelector"]["matchLabels"]), coordinator)
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in job["volumes"] if "emptyDir" not in volume]
        self.assertEqual(claims, ["state-kage-coordinator-0", "kage-backup"])

    def test_two_releases_share_nothing(self) -> None:
        first, second = ({m["metadata"]["name"] for m in render(EVERYTHING, name)[0]} for name in ("kage", "b"))
        self.assertEqual(first & second, set())

    def test_no_pod_has_rights(self) -> None:
        manifests, _ = render(EVERYTHING)
        for manifest in manifests:
            spec = manifest.get("spec", {})
            template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
            if template:
                pod, (container,) = template["spec"], template["spec"]["containers"]
                self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                self.assertFalse(pod["automountServiceAccountToken"])
                self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
                self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])

    def test_a_pod_has_the_time_of_its_drain(self) -> None:
        for seconds in (0, 300, 4000):
            pools = {"a": {**POOL, "drainSeconds": seconds}}
            pod = one(render({"agents": {"pools": pools}})[0], "Deployment", "kage-agent-a")["spec"]["template"]["spec"]
            self.assertIn(f"--drain={seconds}s", pod["containers"][0]["args"])
            # As TimeoutStopSec of the agent's unit, whose drain is 60 s.
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], seconds + 70)


class OtherFiles(unittest.TestCase):
    def test_the_board_is_one(self) -> None:
        board = json.loads((DEPLOY / "grafana" / "kage.json").read_text())
        jsonschema.validate(board, json.loads((Path(__file__).parent / "board.schema.json").read_text()))
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        cells = [(x, y) for p in (panel["gridPos"] for panel in board["panels"])
                 for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
        self.assertEqual(len(cells), len(set(cells)), "panels overlap")
        self.assertTrue(all(x < 24 for x, _ in cells))

    def test_the_home_of_the_unit_is_that_of_the_documented_user(self) -> None:
        unit = (DEPLOY / "systemd" / "kage-agent.service").read_text()
        (home,) = re.findall(r"^Environment=HOME=(.*)$", unit, re.MULTILINE)
        (user,) = re.findall(r"^User=(.*)$", unit, re.MULTILINE)
        made = re.findall(
            r"^useradd .*--home-dir (\S+) (\S+)$", (DEPLOY / ".." / "docs" / "operations.md").read_text(), re.MULTILINE
        )
        self.assertIn((home, user), made)

    def test_compose_runs_what_the_container_file_builds(self) -> None:
        container = (DEPLOY / "container" / "Containerfile").read_text()
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        for service in compose["services"].values():
            if "build" in service:
                self.assertIn(f"AS {service['build']['target']}\n", container)
                self.assertTrue((DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file())
            for volume in service.get("volumes", []):
                self.assertIn(volume.split(":")[0], compose["volumes"])
        self.assertEqual(container.count("\nHEALTHCHECK "), 2)


if __name__ == "__main__":
    unittest.main()
