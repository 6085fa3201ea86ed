"""The chart, the board and the alert rules as data: what Helm renders, and which metrics are named. Nothing is
asserted here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "kage"

Manifest = dict[str, Any]


def render(values: Manifest, name: str = "kage") -> tuple[list[Manifest], str]:
    """The manifests of a release in the namespace `fleet`, and its notes."""
    manifests, notes = [], ""
    with helm_python.Chart.load(CHART) as chart:
        for path, text in chart.render(values, name=name, namespace="fleet").items():
            if path.endswith("NOTES.txt"):
                notes = text
            else:
                manifests += [manifest for manifest in yaml.safe_load_all(text) if manifest]
    return manifests, notes


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of this kind and name."""
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def queries() -> list[str]:
    """Every query of the board, the alert rules and the autoscalers."""
    board = json.loads((DEPLOY / "grafana" / "kage.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "kage.rules.yml").read_text())
    found += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    pools = {kind: {"joinToken": {"secret": "x"}, "autoscaling": {"kind": kind}} for kind in ("keda", "hpa")}
    for manifest in render({"agents": {"pools": pools}})[0]:
        if manifest["kind"] == "ScaledObject":
            found += [trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"]]
        if manifest["kind"] == "HorizontalPodAutoscaler":
            found += [metric["external"]["metric"]["name"] for metric in manifest["spec"]["metrics"]]
    return found


def metrics() -> set[str]:
    """The metrics that the queries name."""
    # Names of scrape jobs are no metrics.
    return {name for query in queries() for name in re.findall(r"\bkage_[a-z_]+", re.sub(r'job=~"[^"]*"', "", query))}
