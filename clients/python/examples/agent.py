"""A minimal agent: proof that agents can be written in any language.

    python agent.py --url http://127.0.0.1:7443 --token-file DATA_DIR/token --name py

It offers one adapter, `py-shell`, to tasks without a repository: the prompt is a shell
command. It keeps to the whole protocol of `agent_service.proto` and
`event_service.proto`: leases, resending what was not acknowledged, drain on SIGTERM. What
it leaves out: workspaces, contexts, verify jobs, and an outbox on disk. It does without
the latter because a new start is a new boot id, which ends all older attempts.

    control stream                 delivery stream
    Offer -> Accept -> Granted --> run --> output and events --> acks --> forgotten
                Stop, lease lost --> kill           ^--- again after a reconnect
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from kage.client import OPTIONS, bearer, credentials, target
from kage.errors import KageError
from kage.v1 import agent_service_pb2 as control
from kage.v1 import agent_service_pb2_grpc, event_service_pb2_grpc
from kage.v1 import event_pb2 as events
from kage.v1.event_service_pb2 import AppendRequest, AppendResponse, EventBatch, OutputBatch
from kage.v1.fleet_service_pb2 import AdapterInfo
from kage.v1.value_pb2 import (
    CONTAINMENT_TIER_T0,
    FAILURE_KIND_ADAPTER_CRASH,
    FAILURE_KIND_ADAPTER_UNAVAILABLE,
    FAILURE_KIND_AGENT_LOST,
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_TIMEOUT,
    Failure,
)

ADAPTER = "py-shell"
PROTOCOL = 1
# The most bytes of one OutputBatch.
BATCH_BYTES = 64 << 10
BATCH_EVENTS = 100
# Output that is not acknowledged. When there is more, the program's pipe is not read.
OUTBOX_BYTES = 1 << 20
RECONNECT = 0.5
# How often leases and time limits are looked at.
TICK = 0.25

# What reading from a stream that ended gives; unknown to grpcio's types.
EOF: Any = getattr(grpc.aio, "EOF")

log = logging.getLogger("agent")


def seconds(duration: Duration) -> float:
    """A duration of the wire as clocks here count."""
    return duration.seconds + duration.nanos / 1e9


class Attempt:
    """One granted attempt: its program, and what it told that is not acknowledged yet."""

    def __init__(self, offer: control.Offer, wake: asyncio.Event, held_until: float) -> None:
        self.key = offer.key
        self.work = offer.work
        self.held_until = held_until
        self.finished = False
        self._wake = wake
        self._space = asyncio.Event()
        self._program: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._failure: Failure | None = None
        self._started = self._last_output = time.monotonic()
        self._events: list[events.Event] = []
        self._acked_seq = self._sent_seq = 0
        self._streams = {
            events.OUTPUT_STREAM_STDOUT: Stream(),
            events.OUTPUT_STREAM_STDERR: Stream(),
        }

    # --- the program ---------------------------------------------------------------

    async def run(self) -> None:
        """Runs the prompt as a shell command and tells how that went."""
        self._tell(phase_changed=events.PhaseChanged(phase=events.PHASE_WORKING))
        try:
            with tempfile.TemporaryDirectory(prefix="kage-agent-", ignore_cleanup_errors=True) as scratch:
                code = await self._execute(scratch)
        except OSError as error:
            self.end(Failure(kind=FAILURE_KIND_ADAPTER_UNAVAILABLE, message=str(error)))
        else:
            self._tell(activity=events.Activity(summary=f"the command ended with {code}"))
            if code != 0:
                self.end(Failure(kind=FAILURE_KIND_ADAPTER_CRASH, message=f"the command ended with {code}"))
        if self._failure is None:
            self._tell(finished=events.Finished(claimed=events.Claimed()))
        else:
            self._tell(finished=events.Finished(failure=self._failure))
        self.finished = True

    async def _execute(self, scratch: str) -> int:
        self._program = program = subprocess.Popen(
            ["sh", "-c", self.work.session.prompt],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: everything it starts can be stopped at once.
            start_new_session=True,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": scratch,
                "TMPDIR": scratch,
                "KAGE_TASK": self.work.task_id,
                "KAGE_SESSION": self.work.session_id,
            },
        )
        if self._failure is not None:
            # It was to end before it began.
            self._signal(signal.SIGKILL)
        copies = asyncio.gather(
            self._copy(events.OUTPUT_STREAM_STDOUT, program.stdout),
            self._copy(events.OUTPUT_STREAM_STDERR, program.stderr),
        )
        code = await asyncio.to_thread(program.wait)
        # What it left in the background ends with it; then the pipes end too.
        self._signal(signal.SIGKILL)
        await copies
        return code

    def end(self, failure: Failure) -> None:
        """Kills the program; `run` then tells why. The first reason counts."""
        self._failure = self._failure or failure
        self._signal(signal.SIGKILL)
        self._space.set()

    def check(self, now: float, lease_ttl: float, max_detached: float) -> None:
        """Freezes, thaws or ends the program by lease and time limits."""
        # A fifth of the lease is left for stopping in time.
        doubtful = now > self.held_until - lease_ttl / 5
        if doubtful != self._frozen:
            self._frozen = doubtful
            self._signal(signal.SIGSTOP if doubtful else signal.SIGCONT)
        limits = self.work.session
        if now > self.held_until + max_detached:
            # Not "cancelled": somebody may take it up again.
            self.end(Failure(kind=FAILURE_KIND_AGENT_LOST, message="the coordinator was away for too long"))
        elif now - self._started > seconds(limits.timeout):
            self.end(Failure(kind=FAILURE_KIND_TIMEOUT, message="the attempt took too long"))
        elif now - self._last_output > seconds(limits.idle_timeout):
            self.end(Failure(kind=FAILURE_KIND_TIMEOUT, message="there was no output for too long"))

    async def _copy(self, kind: events.OutputStream, pipe: Any) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        stream = self._streams[kind]
        with contextlib.closing(transport):
            while data := await reader.read(BATCH_BYTES):
                self._last_output = time.monotonic()
                stream.unacked += data
                self._wake.set()
                while len(stream.unacked) > OUTBOX_BYTES and self._failure is None:
                    self._space.clear()
                    await self._space.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._program.pid, number)

    # --- what it told --------------------------------------------------------------

    def _tell(self, **body: Any) -> None:
        seq = self._acked_seq + len(self._events) + 1
        event = events.Event(seq=seq, **body)
        event.at.GetCurrentTime()
        self._events.append(event)
        self._wake.set()

    def rewind(self) -> None:
        """A new delivery stream: everything that was not acknowledged is sent again."""
        self._sent_seq = self._acked_seq
        for stream in self._streams.values():
            stream.sent = 0

    def unsent(self) -> Iterator[AppendRequest]:
        """What to send now. Output goes before the events told after it, because no output
        is taken after the event `finished`."""
        while True:
            for kind, stream in self._streams.items():
                if data := bytes(stream.unacked[stream.sent : stream.sent + BATCH_BYTES]):
                    batch = OutputBatch(stream=kind, offset=stream.acked + stream.sent, data=data)
                    stream.sent += len(data)
                    yield AppendRequest(key=self.key, output=batch)
                    break
            else:
                first = self._sent_seq - self._acked_seq
                told = self._events[first : first + BATCH_EVENTS]
                if not told:
                    return
                self._sent_seq = told[-1].seq
                yield AppendRequest(key=self.key, events=EventBatch(events=told))

    def acknowledge(self, response: AppendResponse) -> None:
        """Forgets what is durable at the coordinator."""
        if response.HasField("acked_output"):
            stream = self._streams[response.acked_output.stream]
            durable = max(0, response.acked_output.offset - stream.acked)
            del stream.unacked[:durable]
            stream.acked += durable
            stream.sent = max(0, stream.sent - durable)
            self._space.set()
        else:
            durable = max(0, response.acked_seq - self._acked_seq)
            del self._events[:durable]
            self._acked_seq += durable
            self._sent_seq = max(self._sent_seq, self._acked_seq)

    @property
    def delivered(self) -> bool:
        """True when it ended and the coordinator knows everything."""
        return self.finished and not self._events


class Stream:
    """Output of one stream: `acked` bytes are durable, the first `sent` of the others sent."""

    def __init__(self) -> None:
        self.acked = 0
        self.unacked = bytearray()
        self.sent = 0


class Agent:
    """The agent: one connection at a time, and the attempts, which outlive it."""

    def __init__(self, url: str, token: str, name: str, slots: int, ca_file: Path | None = None) -> None:
        self._address = target(url)
        self._trust = credentials(url, ca_file)
        self._metadata = bearer(token)
        self._name = name
        self._slots = slots
        # The same after a restart, so that the fleet shows one agent.
        self._id = uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{socket.gethostname()}").hex
        self._boot = uuid.uuid4().hex
        self._accepted: dict[str, tuple[control.Offer, float]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._runs: set[asyncio.Task[None]] = set()
        # Set whenever there may be something to deliver.
        self._wake = asyncio.Event()
        self._draining = asyncio.Event()
        self._terms = control.Welcome(lease_ttl=Duration(seconds=60), max_detached=Duration(seconds=600))

    def drain(self) -> None:
        """Takes no more work; `serve` returns when what runs is finished."""
        self._draining.set()

    @property
    def draining(self) -> bool:
        """True when it takes no more work."""
        return self._draining.is_set()

    async def serve(self) -> None:
        """Serves until it is drained. Raises `KageError` when that makes no sense."""
        limits = asyncio.create_task(self._enforce())
        try:
            while not self._idle():
                try:
                    await self._session()
                except KageError as error:
                    if error.reason not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"):
                        raise
                    log.warning("disconnected: %s", error)
                    await asyncio.sleep(RECONNECT)
        finally:
            limits.cancel()
            for attempt in self._attempts.values():
                attempt.end(Failure(kind=FAILURE_KIND_CANCELLED, message="the agent ends"))
            await asyncio.gather(*self._runs)

    def _idle(self) -> bool:
        return self.draining and not self._attempts and not self._accepted

    def _channel(self) -> grpc.aio.Channel:
        if self._trust is None:
            return grpc.aio.insecure_channel(self._address, options=OPTIONS)
        return grpc.aio.secure_channel(self._address, self._trust, options=OPTIONS)

    async def _session(self) -> None:
        """One connection for control and one for delivery, so that neither waits for the other."""
        # An offer of an earlier connection is never granted on this one.
        self._accepted.clear()
        async with contextlib.AsyncExitStack() as stack:
            for_control, for_delivery = [
                await stack.enter_async_context(self._channel())
                for _ in range(2)
            ]
            call = agent_service_pb2_grpc.AgentServiceStub(for_control).Connect(metadata=self._metadata)
            asked = time.monotonic()
            await send(call, control.ConnectRequest(hello=self._hello()))
            self._terms = (await receive(call)).welcome
            for attempt_id, attempt in list(self._attempts.items()):
                if attempt_id in self._terms.stop:
                    self._drop(attempt_id)
                else:
                    attempt.held_until = asked + seconds(self._terms.lease_ttl)
            log.info("connected as %s", self._id)
            # Without a limit: what is said is at most an answer per message received.
            outbound: asyncio.Queue[control.ConnectRequest] = asyncio.Queue()
            asks: dict[int, float] = {}
            await first_to_end(
                self._talk(call, outbound),
                self._listen(call, outbound, asks),
                self._beat(outbound, asks),
                self._deliver(for_delivery),
                self._leave(outbound),
            )

    def _hello(self) -> control.Hello:
        return control.Hello(
            agent_id=self._id,
            boot_id=self._boot,
            protocol_min=PROTOCOL,
            protocol_max=PROTOCOL,
            name=self._name,
            slots=self._slots,
            labels={"language": "python"},
            adapters=[AdapterInfo(name=ADAPTER)],
            running=[attempt.key for attempt in self._attempts.values()],
            pid=os.getpid(),
            version="0.1.0",
            answers_pings=True,
        )

    # --- control -------------------------------------------------------------------

    async def _talk(self, call: Any, outbound: asyncio.Queue[control.ConnectRequest]) -> None:
        while True:
            await send(call, await outbound.get())

    async def _beat(self, outbound: asyncio.Queue[control.ConnectRequest], asks: dict[int, float]) -> None:
        sequence = 0
        while True:
            await asyncio.sleep(seconds(self._terms.heartbeat_interval))
            sequence += 1
            asks[sequence] = now = time.monotonic()
            # An offer that was taken back before its acceptance arrived is never granted.
            for attempt_id, (_, accepted_at) in list(self._accepted.items()):
                if now - accepted_at > seconds(self._terms.lease_ttl):
                    del self._accepted[attempt_id]
            running = [attempt.key for attempt in self._attempts.values()]
            heartbeat = control.Heartbeat(sequence=sequence, running=running)
            outbound.put_nowait(control.ConnectRequest(heartbeat=heartbeat))

    async def _leave(self, outbound: asyncio.Queue[control.ConnectRequest]) -> None:
        """Ends the session when the agent is drained and idle."""
        await self._draining.wait()
        outbound.put_nowait(control.ConnectRequest(draining=control.Draining()))
        while not self._idle():
            await asyncio.sleep(TICK)

    async def _listen(
        self, call: Any, outbound: asyncio.Queue[control.ConnectRequest], asks: dict[int, float]
    ) -> None:
        while True:
            message = await receive(call)
            kind = message.WhichOneof("message")
            if kind == "offer":
                outbound.put_nowait(self._answer(message.offer))
            elif kind == "granted":
                self._start(message.granted.attempt_id)
            elif kind == "heartbeat_ack":
                # Counted from when it was asked: the coordinator's own count began later.
                asked = asks.pop(message.heartbeat_ack.sequence, None)
                for attempt_id in message.heartbeat_ack.renewed:
                    if asked is not None and attempt_id in self._attempts:
                        self._attempts[attempt_id].held_until = asked + seconds(self._terms.lease_ttl)
            elif kind == "stop":
                # An accepted offer that is stopped was never granted.
                self._accepted.pop(message.stop.attempt_id, None)
                if attempt := self._attempts.get(message.stop.attempt_id):
                    attempt.end(Failure(kind=FAILURE_KIND_CANCELLED, message=message.stop.reason))
            elif kind == "drain":
                self.drain()
            elif kind == "ping":
                pong = control.Pong(sequence=message.ping.sequence)
                outbound.put_nowait(control.ConnectRequest(pong=pong))

    def _answer(self, offer: control.Offer) -> control.ConnectRequest:
        reason = self._refusal(offer.work)
        if reason:
            return control.ConnectRequest(refuse=control.Refuse(offer_id=offer.offer_id, reason=reason))
        self._accepted[offer.key.attempt_id] = (offer, time.monotonic())
        return control.ConnectRequest(accept=control.Accept(offer_id=offer.offer_id))

    def _refusal(self, work: control.Work) -> str:
        """Why this work is not taken; empty = it is."""
        running = sum(not attempt.finished for attempt in self._attempts.values())
        if self.draining:
            return "the agent is draining"
        if running + len(self._accepted) >= self._slots:
            return "every slot is taken"
        if work.WhichOneof("kind") != "session" or work.session.adapter != ADAPTER:
            return f"only sessions of {ADAPTER} are run here"
        if work.HasField("repository") or work.session.context_base or work.session.prompt_digest:
            return "repositories, contexts and prompts over 64 KiB are not supported here"
        if work.contain > CONTAINMENT_TIER_T0:
            return "programs are not contained here"
        return ""

    def _start(self, attempt_id: str) -> None:
        if attempt_id not in self._accepted:
            # Not told in heartbeats, so that its lease ends.
            log.warning("granted attempt %s, which was not accepted", attempt_id)
            return
        offer, asked = self._accepted.pop(attempt_id)
        attempt = Attempt(offer, self._wake, asked + seconds(self._terms.lease_ttl))
        self._attempts[attempt_id] = attempt
        run = asyncio.create_task(attempt.run())
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        log.info("attempt %s of task %s", attempt_id, offer.work.task_id)

    async def _enforce(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            for attempt in self._attempts.values():
                if not attempt.finished:
                    attempt.check(now, seconds(self._terms.lease_ttl), seconds(self._terms.max_detached))

    # --- delivery ------------------------------------------------------------------

    async def _deliver(self, channel: grpc.aio.Channel) -> None:
        metadata = (*self._metadata, ("x-kage-agent", self._id))
        call = event_service_pb2_grpc.EventServiceStub(channel).Append(metadata=metadata)
        for attempt in self._attempts.values():
            attempt.rewind()
        await first_to_end(self._send(call), self._acknowledge(call))

    async def _send(self, call: Any) -> None:
        while True:
            self._wake.clear()
            for attempt in list(self._attempts.values()):
                for request in attempt.unsent():
                    await send(call, request)
            await self._wake.wait()

    async def _acknowledge(self, call: Any) -> None:
        while True:
            response = await receive(call)
            attempt = self._attempts.get(response.attempt_id)
            if attempt is None:
                continue
            if response.HasField("rejected"):
                log.warning("attempt %s: %s", response.attempt_id, response.rejected.reason)
                self._drop(response.attempt_id)
                continue
            attempt.acknowledge(response)
            if attempt.delivered:
                del self._attempts[response.attempt_id]

    def _drop(self, attempt_id: str) -> None:
        """Its authority is gone: nothing more of it is told."""
        attempt = self._attempts.pop(attempt_id)
        attempt.end(Failure(kind=FAILURE_KIND_CANCELLED, message="the attempt lost its authority"))


async def receive(call: Any) -> Any:
    """The next message of a stream. Raises `KageError` when there is none."""
    try:
        message = await call.read()
    except grpc.RpcError as error:
        raise KageError.of(error) from error
    if message is EOF:
        # In good order, as when the coordinator shuts down.
        raise KageError("UNAVAILABLE", "the coordinator closed the stream")
    return message


async def send(call: Any, message: Any) -> None:
    """Sends a message. Raises `KageError` when the stream is broken."""
    try:
        await call.write(message)
    except grpc.RpcError as error:
        raise KageError.of(error) from error
    except asyncio.InvalidStateError:
        # The stream ended before; reading says why.
        await receive(call)


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all until one of them ends or fails, and stops the others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the coordinator's address, such as http://127.0.0.1:7443")
    parser.add_argument("--token-file", required=True, type=Path)
    parser.add_argument("--ca-file", type=Path, help="certificate of the coordinator's CA, for https")
    parser.add_argument("--name", default=socket.gethostname())
    parser.add_argument("--slots", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    agent = Agent(
        arguments.url, arguments.token_file.read_text(), arguments.name, arguments.slots, arguments.ca_file
    )
    serving = asyncio.create_task(agent.serve())

    def stop() -> None:
        if agent.draining:
            serving.cancel()
        agent.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await serving
    except asyncio.CancelledError:
        sys.exit("agent: stopped by a second signal")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KageError as error:
        sys.exit(f"agent: {error.reason}: {error}")
