"""What the example agent does by itself: leases, limits, and sending again."""

from __future__ import annotations

import asyncio
import sys
import time
import unittest
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cluster import AGENT, DEADLINE

sys.path.append(str(AGENT.parent))

from agent import BATCH_BYTES, Attempt  # noqa: E402

from kage.v1 import agent_service_pb2 as control  # noqa: E402
from kage.v1.event_pb2 import OUTPUT_STREAM_STDOUT  # noqa: E402
from kage.v1.event_service_pb2 import AppendRequest, AppendResponse, OutputAck  # noqa: E402
from kage.v1.value_pb2 import FAILURE_KIND_AGENT_LOST, FAILURE_KIND_TIMEOUT  # noqa: E402

MINUTE = 60.0


def offer(command: str, timeout: float = MINUTE, idle_timeout: float = MINUTE) -> control.Offer:
    session = control.SessionWork(prompt=command)
    session.timeout.FromTimedelta(timedelta(seconds=timeout))
    session.idle_timeout.FromTimedelta(timedelta(seconds=idle_timeout))
    return control.Offer(key=control.AttemptKey(attempt_id="a"), work=control.Work(session=session))


def sent(requests: list[AppendRequest]) -> tuple[bytes, list[str | None]]:
    """The output and the kinds of events in a delivery."""
    output = b"".join(request.output.data for request in requests)
    events = [event for request in requests for event in request.events.events]
    return output, [event.WhichOneof("body") for event in events]


class AnAttempt(unittest.IsolatedAsyncioTestCase):
    def start(self, *what: object) -> tuple[Attempt, asyncio.Task[None]]:
        attempt = Attempt(offer(*what), asyncio.Event(), time.monotonic() + 60)  # type: ignore[arg-type]
        run = asyncio.create_task(attempt.run())
        self.addAsyncCleanup(asyncio.wait_for, run, DEADLINE)
        return attempt, run

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            await asyncio.sleep(0.01)

    async def test_sends_everything_once_and_again_after_a_reconnect(self) -> None:
        attempt, run = self.start("head -c 200000 /dev/zero; echo end")
        await run
        first = [*attempt.unsent()]
        output, kinds = sent(first)
        self.assertEqual(output, bytes(200000) + b"end\n")
        self.assertEqual(kinds, ["phase_changed", "activity", "finished"])
        # The end is told last, because no output is taken after it.
        self.assertTrue(first[-1].HasField("events"))
        self.assertLessEqual(max(len(request.output.data) for request in first), BATCH_BYTES)
        self.assertEqual([*attempt.unsent()], [])

        attempt.acknowledge(AppendResponse(acked_seq=1))
        attempt.acknowledge(AppendResponse(acked_output=OutputAck(stream=OUTPUT_STREAM_STDOUT, offset=199_999)))
        self.assertEqual([*attempt.unsent()], [])
        attempt.rewind()
        again = [*attempt.unsent()]
        self.assertEqual(sent(again), (b"\0end\n", ["activity", "finished"]))
        self.assertEqual(again[0].output.offset, 199_999)
        self.assertEqual(again[-1].events.events[0].seq, 2)
        self.assertFalse(attempt.delivered)
        attempt.acknowledge(AppendResponse(acked_seq=3))
        self.assertTrue(attempt.delivered)

    async def test_is_frozen_while_its_lease_is_in_doubt_and_killed_much_later(self) -> None:
        attempt, run = self.start("echo $$; exec sleep 600")
        await self.until(lambda: bool(sent([*attempt.unsent()])[0]))
        attempt.rewind()
        pid = int(sent([*attempt.unsent()])[0])

        def state() -> str:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[-1][0]

        end = attempt.held_until
        attempt.check(end - 11, 50, 600)
        self.assertNotEqual(state(), "T")
        attempt.check(end - 9, 50, 600)
        await self.until(lambda: state() == "T")
        attempt.held_until += 50
        attempt.check(end - 9, 50, 600)
        await self.until(lambda: state() != "T")
        attempt.check(attempt.held_until + 601, 50, 600)
        await asyncio.wait_for(run, DEADLINE)
        self.assertEqual(self.failure(attempt), FAILURE_KIND_AGENT_LOST)

    async def test_ends_at_its_limits(self) -> None:
        for limits in [(0.001, MINUTE), (MINUTE, 0.001)]:
            attempt, run = self.start("sleep 600", *limits)
            await asyncio.sleep(0)
            attempt.check(time.monotonic() + 0.01, 50, 600)
            await asyncio.wait_for(run, DEADLINE)
            self.assertEqual(self.failure(attempt), FAILURE_KIND_TIMEOUT)

    async def test_what_a_command_leaves_behind_ends_with_it(self) -> None:
        _, run = self.start("sleep 600 & echo started")
        # It would wait for the pipe that `sleep` holds.
        await asyncio.wait_for(run, DEADLINE)

    def failure(self, attempt: Attempt) -> int:
        attempt.rewind()
        (*_, last) = attempt.unsent()
        return last.events.events[-1].finished.failure.kind
