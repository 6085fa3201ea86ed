"""The client and the example agent against a real coordinator."""

from __future__ import annotations

import os
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kage
from cluster import DEADLINE, Agent, Coordinator, Proxy, shell_task, wait_for
from kage.client import bearer, channel
from kage.v1 import access_service_pb2, access_service_pb2_grpc
from kage.v1 import agent_service_pb2, agent_service_pb2_grpc
from kage.v1.fleet_service_pb2 import AGENT_STATE_DRAINING

OUTPUT = [kage.OUTPUT_STREAM_STDOUT, kage.OUTPUT_STREAM_STDERR]


class Live(unittest.TestCase):
    coordinator: Coordinator
    client: kage.Client

    @classmethod
    def setUpClass(cls) -> None:
        cls.coordinator = Coordinator()
        cls.addClassCleanup(cls.coordinator.close)
        cls.client = kage.connect(cls.coordinator.url, cls.coordinator.token)
        cls.addClassCleanup(cls.client.close)
        agent = Agent(cls.coordinator)
        cls.addClassCleanup(lambda: cls._expect_clean_end(agent.close()))
        wait_for("agent", cls.client.agents)

    @staticmethod
    def _expect_clean_end(code: int) -> None:
        assert code == 0, f"the agent ended with {code}"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.gate = Path(folder.name) / "gate"

    def gated(self, before: str, after: str) -> kage.TaskSpec:
        """A command that waits in its middle until the test opens the gate."""
        return shell_task(f"{before}; while [ ! -e {self.gate} ]; do sleep 0.02; done; {after}")

    def submit(self, client: kage.Client, spec: kage.TaskSpec) -> kage.Task:
        """Submits a task that does not outlive the test."""
        task = client.submit(spec)
        self.addCleanup(self.client.cancel, task.id)
        return task

    def check_whole(self, items: list[kage.Item]) -> dict[int, bytes]:
        """Checks that nothing was skipped or repeated, and returns the output by stream."""
        events = [item.event for item in items if isinstance(item, kage.SessionEvent)]
        self.assertEqual([event.seq for event in events], list(range(1, len(events) + 1)))
        self.assertEqual([event.WhichOneof("body") for event in events], ["phase_changed", "activity", "finished"])
        output: dict[int, bytes] = {stream: b"" for stream in OUTPUT}
        for chunk in items:
            if isinstance(chunk, kage.OutputChunk):
                self.assertEqual(chunk.offset, len(output[chunk.stream]))
                output[chunk.stream] += chunk.data
        return output

    def test_the_agent_is_in_the_fleet(self) -> None:
        (agent,) = self.client.agents()
        self.assertEqual(agent.name, "py")
        self.assertEqual([adapter.name for adapter in agent.adapters], ["py-shell"])

    def test_a_task_is_watched_to_its_end_over_a_broken_connection(self) -> None:
        proxy = Proxy(self.coordinator.url)
        self.addCleanup(proxy.close)
        with kage.connect(proxy.url, self.coordinator.token) as client:
            task = self.submit(client, self.gated("echo one", "echo two >&2; echo three"))
            items: list[kage.Item] = []
            watch = client.watch(task.id, output=OUTPUT)
            for item in watch:
                items.append(item)
                if isinstance(item, kage.OutputChunk) and item.data == b"one\n":
                    before = proxy.connections
                    proxy.cut()
                    self.gate.touch()
        self.assertGreater(proxy.connections, before)
        output = self.check_whole(items)
        self.assertEqual(output[kage.OUTPUT_STREAM_STDOUT], b"one\nthree\n")
        self.assertEqual(output[kage.OUTPUT_STREAM_STDERR], b"two\n")
        last = [item for item in items if isinstance(item, kage.Task)][-1]
        self.assertEqual(last.state, kage.TaskState.TASK_STATE_SUCCEEDED)

        report = self.client.report(task.id)
        self.assertFalse(report.provisional)
        self.assertEqual([(row.session.name, row.session.agent) for row in report.rows], [("one", "py")])
        self.assertTrue(report.HasField("best") and report.best.message)
        whole = self.client.get(task.id[:12])
        self.assertEqual((whole.id, whole.view), (task.id, kage.TASK_VIEW_FULL))
        basic = self.client.get(task.id, kage.TASK_VIEW_BASIC)
        self.assertEqual((basic.spec.prompt, basic.prompt_size), ("", len(whole.spec.prompt.encode())))
        self.assertEqual(task.view, kage.TASK_VIEW_BASIC)
        self.assertGreaterEqual(self.client.server().limits.sessions, 1)
        # The cursor of the last item is after everything, also for another process.
        rest = [*self.client.watch(task.id, output=OUTPUT, cursor=watch.cursor)]
        self.assertEqual([type(item) for item in rest], [kage.Task])

    def test_a_killed_coordinator_costs_nothing(self) -> None:
        task = self.submit(self.client, self.gated("seq 1 20000", "seq 20001 40000; exit 3"))
        items: list[kage.Item] = []
        killed = False
        for item in self.client.watch(task.id, output=OUTPUT):
            items.append(item)
            if isinstance(item, kage.OutputChunk) and not killed:
                killed = True
                self.coordinator.kill()
                self.gate.touch()
                self.coordinator.start()
        output = self.check_whole(items)
        self.assertEqual(output[kage.OUTPUT_STREAM_STDOUT], b"".join(b"%d\n" % n for n in range(1, 40001)))
        (session,) = self.client.get(task.id).sessions
        self.assertEqual(session.failure.message, "the command ended with 3")

    def test_a_cancelled_task_leaves_no_process(self) -> None:
        task = self.submit(self.client, shell_task("echo $$; exec sleep 600"))
        pid = 0
        for item in self.client.watch(task.id, output=OUTPUT):
            if isinstance(item, kage.OutputChunk):
                pid = int(item.data)
                self.client.cancel(task.id)
        self.assertEqual(self.client.get(task.id).state, kage.TaskState.TASK_STATE_CANCELLED)
        self.assertTrue(pid)
        wait_for("end of the command", lambda: not os.path.exists(f"/proc/{pid}"))
        # To cancel twice changes nothing.
        self.client.cancel(task.id)

    def test_tasks_are_listed_newest_first(self) -> None:
        # More than one page.
        made = [self.submit(self.client, shell_task("true")).id for _ in range(25)]
        listed = [task.id for task in self.client.list()]
        self.assertEqual(listed[: len(made)], made[::-1])
        running = kage.TaskFilter(states=[kage.TaskState.TASK_STATE_FAILED], labels={"no": "such"})
        self.assertEqual([*self.client.list(filter=running)], [])
        oldest = [task.id for task in self.client.list(order=kage.TASK_ORDER_OLDEST_FIRST)]
        self.assertEqual(oldest, listed[::-1])

    def test_many_tasks_are_watched_over_a_broken_connection(self) -> None:
        proxy = Proxy(self.coordinator.url)
        self.addCleanup(proxy.close)
        labels = {"watched": self.id()}
        with kage.connect(proxy.url, self.coordinator.token) as client:
            spec = self.gated("true", "true")
            spec.labels.update(labels)
            first = self.submit(client, spec)
            watch = client.watch_tasks(filter=kage.TaskFilter(labels=labels), agents=True, holds=True)
            tasks: dict[str, kage.Task] = {}
            agents: set[str] = set()
            second = ""
            for item in watch:
                if isinstance(item, kage.WatchReset):
                    tasks.clear()
                elif isinstance(item, kage.Task):
                    tasks[item.id] = item
                elif isinstance(item, kage.Agent):
                    agents.add(item.name)
                elif isinstance(item, kage.WatchCaughtUp) and not second:
                    self.assertEqual([*tasks], [first.id])
                    proxy.cut()
                    other = shell_task("true")
                    other.labels.update(labels)
                    second = self.submit(self.client, other).id
                    self.gate.touch()
                succeeded = [task.state == kage.TaskState.TASK_STATE_SUCCEEDED for task in tasks.values()]
                if len(succeeded) == 2 and all(succeeded) and agents:
                    watch.close()
            self.assertEqual({*tasks}, {first.id, second})
            self.assertEqual(agents, {"py"})
            self.assertGreater(proxy.connections, 1)

    def test_what_has_no_result_has_no_difference_and_is_not_selected(self) -> None:
        task = self.submit(self.client, shell_task("true"))
        [*self.client.watch(task.id)]
        with self.assertRaises(kage.KageError) as caught:
            [*self.client.diff(task.id)]
        self.assertEqual(caught.exception.reason, "FAILED_PRECONDITION")
        with self.assertRaises(kage.KageError) as caught:
            self.client.select(task.id, "one")
        self.assertEqual(caught.exception.reason, "FAILED_PRECONDITION")
        self.assertFalse(self.client.select(task.id, "").HasField("selection"))

    def test_a_request_id_names_one_task(self) -> None:
        spec = shell_task("true")
        first = self.client.submit(spec, request_id="the-same")
        self.assertEqual(self.client.submit(spec, request_id="the-same").id, first.id)
        with self.assertRaises(kage.KageError) as caught:
            self.client.submit(shell_task("false"), request_id="the-same")
        self.assertEqual(caught.exception.reason, "CONFLICT")

    def test_errors_carry_their_facts(self) -> None:
        with kage.connect(self.coordinator.url, "0" * 64) as stranger:
            with self.assertRaises(kage.KageError) as caught:
                stranger.submit(shell_task("true"))
            self.assertEqual(caught.exception.reason, "UNAUTHENTICATED")
            with self.assertRaises(kage.KageError) as caught:
                next(stranger.watch("0" * 32))
            self.assertEqual(caught.exception.reason, "UNAUTHENTICATED")
        with self.assertRaises(kage.KageError) as caught:
            self.client.get("0" * 32)
        self.assertEqual(caught.exception.reason, "NOT_FOUND")
        with self.assertRaises(kage.KageError) as caught:
            self.client.submit(kage.TaskSpec(assignments=[kage.Assignment(name="A b", adapter="x")]))
        self.assertEqual(caught.exception.reason, "INVALID_ARGUMENT")
        self.assertIn("name", caught.exception.violations[0].field)


class AnotherCoordinator(unittest.TestCase):
    def setUp(self) -> None:
        self.coordinator = Coordinator()
        self.addCleanup(self.coordinator.close)
        self.client = kage.connect(self.coordinator.url, self.coordinator.token)
        self.addCleanup(self.client.close)
        self.channel = channel(self.coordinator.url)
        self.addCleanup(self.channel.close)
        self.metadata = bearer(self.coordinator.token)

    def come_and_go(self, number: int, name: str) -> None:
        """An agent that is known from now on, and not there any more."""
        id = f"{number:032x}"
        hello = agent_service_pb2.Hello(
            agent_id=id, boot_id=id, protocol_min=1, protocol_max=1, name=name, slots=1
        )
        welcomed = threading.Event()

        def says() -> Iterator[agent_service_pb2.ConnectRequest]:
            yield agent_service_pb2.ConnectRequest(hello=hello)
            welcomed.wait(DEADLINE)

        stub: Any = agent_service_pb2_grpc.AgentServiceStub(self.channel)
        call = stub.Connect(says(), metadata=self.metadata)
        self.assertTrue(next(call).HasField("welcome"))
        welcomed.set()
        call.cancel()

    def test_agents_are_listed_beyond_the_first_page(self) -> None:
        names = [f"a{number:03}" for number in range(105)]
        for number, name in enumerate(names, 1):
            self.come_and_go(number, name)
        self.assertEqual([agent.name for agent in self.client.agents()], names)

    def test_a_revoked_token_ends_a_watch_as_denied(self) -> None:
        access: Any = access_service_pb2_grpc.AccessServiceStub(self.channel)
        make = access_service_pb2.CreateTokenRequest(request_id="make", role="ROLE_VIEW", name="wall")
        made = access.CreateToken(make, metadata=self.metadata)
        task = self.client.submit(shell_task("true"), wait_for_agent=True)
        with kage.connect(self.coordinator.url, made.bearer) as viewer:
            watch = viewer.watch(task.id)
            next(watch)
            revoke = access_service_pb2.RevokeTokenRequest(request_id="revoke", token_id=made.token.id)
            access.RevokeToken(revoke, metadata=self.metadata)
            with self.assertRaises(kage.KageError) as caught:
                next(watch)
        self.assertEqual(caught.exception.reason, "PERMISSION_DENIED")
        self.assertIn("revoked", str(caught.exception))


class OverTls(unittest.TestCase):
    def setUp(self) -> None:
        self.coordinator = Coordinator(tls=True)
        self.addCleanup(self.coordinator.close)

    def test_a_task_is_run_and_watched(self) -> None:
        self.assertTrue(self.coordinator.url.startswith("https://"))
        agent = Agent(self.coordinator)
        self.addCleanup(agent.close)
        with kage.connect(self.coordinator.url, self.coordinator.token, self.coordinator.ca_file) as client:
            wait_for("agent", client.agents)
            task = client.submit(shell_task("echo hello"))
            output = [item.data for item in client.watch(task.id, output=OUTPUT) if isinstance(item, kage.OutputChunk)]
            self.assertEqual(b"".join(output), b"hello\n")

    def test_another_ca_is_not_trusted(self) -> None:
        other = Coordinator(tls=True)
        self.addCleanup(other.close)
        for ca_file in [other.ca_file, None]:
            with kage.connect(self.coordinator.url, self.coordinator.token, ca_file) as client:
                with self.assertRaises(kage.KageError) as caught:
                    client.agents()
                self.assertEqual(caught.exception.reason, "UNAVAILABLE")


class TheAgentEnds(unittest.TestCase):
    def setUp(self) -> None:
        self.coordinator = Coordinator()
        self.addCleanup(self.coordinator.close)

    def test_when_it_is_not_let_in(self) -> None:
        with tempfile.NamedTemporaryFile("w") as wrong:
            wrong.write("0" * 64)
            wrong.flush()
            self.assertEqual(Agent(self.coordinator, Path(wrong.name)).wait(), 1)

    def test_after_what_it_runs_or_by_a_second_signal_at_once(self) -> None:
        agent = Agent(self.coordinator)
        self.addCleanup(agent.close)
        with kage.connect(self.coordinator.url, self.coordinator.token) as client:
            task = client.submit(shell_task("echo $$; exec sleep 600"), wait_for_agent=True)
            for item in client.watch(task.id, output=OUTPUT):
                if isinstance(item, kage.OutputChunk):
                    pid = int(item.data)
                    break
            agent.ask_to_end()
            wait_for("draining agent", lambda: client.agents()[0].state == AGENT_STATE_DRAINING)
            self.assertTrue(os.path.exists(f"/proc/{pid}"))
        self.assertEqual(agent.close(), 1)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
