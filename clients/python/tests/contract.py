"""The contract of the clients (clients/contract) with `kage.Client` and `kage.aio.Client`.
`clients/contract/run.py` runs it; by itself it has no coordinator.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import unittest
import uuid
from collections.abc import AsyncIterable, Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf import json_format

import kage

CONTRACT: dict[str, Any] = json.loads(Path(os.environ["KAGE_CONTRACT"]).read_text())
FOLDER = Path(CONTRACT["folder"])
NAMES = {"tasks": "id", "agents": "name", "tokens": "name", "projects": "name", "repositories": "name"}


def spec(fields: dict[str, Any]) -> kage.TaskSpec:
    return json_format.ParseDict(fields, kage.TaskSpec())


def task(gate: Path, base: str) -> kage.TaskSpec:
    """The contract's task, which goes on when the gate is there."""
    made = spec(CONTRACT["task"])
    made.prompt = CONTRACT["command"].replace("GATE", str(gate))
    made.repository.CopyFrom(kage.Repository(name="contract", base_commit=base))
    return made


def cut(gate: Path) -> None:
    """Cuts the connections of the proxy, then opens the gate."""
    with socket.create_connection(("127.0.0.1", CONTRACT["cut"])) as asked:
        # It is closed by the other side when the cut begins.
        asked.recv(1)
    gate.touch()


class Checks(unittest.TestCase):
    def check_list(self, name: str, items: list[Any]) -> None:
        found = [str(getattr(item, NAMES[name])) for item in items]
        expected = {*CONTRACT["names"][name]}
        self.assertEqual(sorted(one for one in found if one in expected), sorted(expected))
        self.assertGreaterEqual(len(found), CONTRACT["items"])

    def check_error(self, expected: dict[str, Any], error: kage.KageError) -> None:
        self.assertEqual(error.reason, expected["reason"])
        fields = [violation.field for violation in error.violations]
        self.assertLessEqual({*expected.get("fields", [])}, {*fields})

    def check_watched(self, items: list[kage.Item]) -> None:
        output = b""
        for item in items:
            if isinstance(item, kage.OutputChunk):
                self.assertEqual(item.offset, len(output))
                output += item.data
        self.assertEqual(output.decode(), CONTRACT["output"])
        last = [item for item in items if isinstance(item, kage.Task)][-1]
        self.assertEqual(last.state, kage.TaskState.TASK_STATE_SUCCEEDED)

    def check_result(self, commit: str) -> None:
        result = CONTRACT["result"]
        shown = subprocess.run(
            ["git", "-C", FOLDER, "show", f"{commit}:{result['file']}"], check=True, capture_output=True, text=True
        )
        self.assertEqual(shown.stdout, result["content"])


class Examples(Checks):
    def test_run(self) -> None:
        """`examples/run.py` does the whole job."""
        example = Path(__file__).resolve().parents[1] / "examples" / "run.py"
        token = FOLDER / "token"
        token.write_text(CONTRACT["token"])
        prompt = CONTRACT["command"].replace("GATE", str(token))
        done = subprocess.run(
            [sys.executable, example, "--url", CONTRACT["url"], "--token-file", token, "shell", prompt],
            cwd=FOLDER,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.assertEqual(done.returncode, 0)
        self.assertTrue(done.stdout.startswith(CONTRACT["output"]), done.stdout)
        self.check_result(done.stdout.split()[-1])


class Sync(Checks):
    def setUp(self) -> None:
        self.client = kage.connect(CONTRACT["url"], CONTRACT["token"])
        self.addCleanup(self.client.close)

    def test_lists(self) -> None:
        in_project: dict[str, Callable[[str], Iterable[Any]]] = {
            "tasks": self.client.list,
            "repositories": self.client.repositories,
        }
        others: dict[str, Callable[[], Iterable[Any]]] = {
            "agents": self.client.agents,
            "tokens": self.client.tokens,
            "projects": self.client.projects,
        }
        self.assertEqual({*in_project, *others}, {*CONTRACT["lists"]})
        for name, of in in_project.items():
            self.check_list(name, [*of(CONTRACT["project"])])
        for name, every in others.items():
            self.check_list(name, [*every()])

    def test_errors(self) -> None:
        for expected in CONTRACT["errors"]:
            with self.subTest(expected["name"]), self.assertRaises(kage.KageError) as caught:
                if "get" in expected:
                    self.client.get(expected["get"])
                else:
                    self.client.submit(spec(expected["submit"]))
            self.check_error(expected, caught.exception)

    def test_request_ids_and_a_task(self) -> None:
        gate, id = FOLDER / "sync-gate", uuid.uuid4().hex
        asked = task(gate, self.client.push(FOLDER, "contract"))
        made = self.client.submit(asked, id)
        self.assertEqual(self.client.submit(asked, id).id, made.id)
        other = task(gate, asked.repository.base_commit)
        other.prompt += " "
        with self.assertRaises(kage.KageError) as caught:
            self.client.submit(other, id)
        self.assertEqual(caught.exception.reason, "CONFLICT")

        items: list[kage.Item] = []
        with kage.connect(CONTRACT["cutting"], CONTRACT["token"]) as cutting:
            for item in cutting.watch(made.id, output=[kage.OUTPUT_STREAM_STDOUT]):
                items.append(item)
                if isinstance(item, kage.OutputChunk) and not gate.exists():
                    cut(gate)
        self.check_watched(items)
        report = self.client.report(made.id)
        self.assertEqual(report.best.session, "one")
        self.check_result(self.client.fetch(FOLDER, made.id, report.best.session))


class Asyncio(Checks, unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.client = kage.aio.connect(CONTRACT["url"], CONTRACT["token"])
        self.addAsyncCleanup(self.client.close)

    async def test_lists(self) -> None:
        in_project: dict[str, Callable[[str], AsyncIterable[Any]]] = {
            "tasks": self.client.list,
            "repositories": self.client.repositories,
        }
        others: dict[str, Callable[[], AsyncIterable[Any]]] = {
            "agents": self.client.agents,
            "tokens": self.client.tokens,
            "projects": self.client.projects,
        }
        self.assertEqual({*in_project, *others}, {*CONTRACT["lists"]})
        for name, of in in_project.items():
            self.check_list(name, [item async for item in of(CONTRACT["project"])])
        for name, every in others.items():
            self.check_list(name, [item async for item in every()])

    async def test_errors(self) -> None:
        for expected in CONTRACT["errors"]:
            with self.subTest(expected["name"]), self.assertRaises(kage.KageError) as caught:
                if "get" in expected:
                    await self.client.get(expected["get"])
                else:
                    await self.client.submit(spec(expected["submit"]))
            self.check_error(expected, caught.exception)

    async def test_request_ids_and_a_task(self) -> None:
        gate, id = FOLDER / "asyncio-gate", uuid.uuid4().hex
        asked = task(gate, await self.client.push(FOLDER, "contract"))
        made = await self.client.submit(asked, id)
        self.assertEqual((await self.client.submit(asked, id)).id, made.id)
        other = task(gate, asked.repository.base_commit)
        other.prompt += " "
        with self.assertRaises(kage.KageError) as caught:
            await self.client.submit(other, id)
        self.assertEqual(caught.exception.reason, "CONFLICT")

        items: list[kage.Item] = []
        async with kage.aio.connect(CONTRACT["cutting"], CONTRACT["token"]) as cutting:
            async for item in cutting.watch(made.id, output=[kage.OUTPUT_STREAM_STDOUT]):
                items.append(item)
                if isinstance(item, kage.OutputChunk) and not gate.exists():
                    cut(gate)
        self.check_watched(items)
        report = await self.client.report(made.id)
        self.assertEqual(report.best.session, "one")
        self.check_result(await self.client.fetch(FOLDER, made.id, report.best.session))


if __name__ == "__main__":
    unittest.main()
