"""What a program asks of a coordinator: run tasks, watch them, compare their results.

Messages are those of `kage.v1`, unchanged; their documentation is in the `.proto`
files. This file adds the token, request ids, one safe retry, and watches that survive
a broken connection.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from kage.errors import KageError
from kage.repository import Remote
from kage.v1 import access_service_pb2, access_service_pb2_grpc
from kage.v1 import checkpoint_service_pb2, checkpoint_service_pb2_grpc
from kage.v1 import cost_service_pb2, cost_service_pb2_grpc
from kage.v1 import fleet_service_pb2, fleet_service_pb2_grpc
from kage.v1 import project_service_pb2, project_service_pb2_grpc
from kage.v1 import server_service_pb2_grpc
from kage.v1 import task_service_pb2, task_service_pb2_grpc
from kage.v1.access_service_pb2 import Token
from kage.v1.checkpoint_service_pb2 import Checkpoint
from kage.v1.cost_service_pb2 import CallFilter, CostGroup, CostsBy, LedgerCall
from kage.v1.diff_pb2 import FileDiff
from kage.v1.event_pb2 import OutputStream
from kage.v1.fleet_service_pb2 import Agent
from kage.v1.project_service_pb2 import Project, StoredRepository
from kage.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from kage.v1.task_pb2 import TASK_VIEW_BASIC, TASK_VIEW_FULL, Report, Task, TaskSpec, TaskView
from kage.v1.task_service_pb2 import (
    TASK_ORDER_NEWEST_FIRST,
    Hold,
    OutputChunk,
    SessionEvent,
    TaskFilter,
    TaskGone,
    TaskOrder,
    WatchCaughtUp,
    WatchReset,
)

#: What a watch yields. The task comes first, and again whenever it changed state.
Item = Task | SessionEvent | OutputChunk
#: What a watch of many tasks yields. `WatchReset` = forget the tasks that were yielded so far.
TasksItem = Task | TaskGone | WatchReset | WatchCaughtUp | Agent | Hold

_Found = TypeVar("_Found")

#: Seconds that one call may take; a watch may take forever.
CALL_TIMEOUT = 30.0
#: Seconds between two tries of a watch to connect again: from, to.
BACKOFF = (0.1, 2.0)

# Tasks carry their prompt whole: 16 MiB at most, and some room.
_MAX_MESSAGE = 20 << 20
#: How every connection to a coordinator is set up.
OPTIONS = [
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    # A half-open connection is noticed while a watch is silent.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Otherwise a client waits up to two minutes for a coordinator that was restarted.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Clients of different coordinators, or tests, never share a connection.
    ("grpc.use_local_subchannel_pool", 1),
]


def connect(url: str, token: str, ca_file: str | os.PathLike[str] | None = None) -> Client:
    """A client of the coordinator at this address: `https://HOST:7443` with the file of its
    CA's certificate, or `http://127.0.0.1:7443` on the same machine.

    On its own machine, address and token are in the files `endpoint` and `token` of the
    coordinator's data directory, and the CA is in `tls/ca.pem`. Without a `ca_file`, https
    trusts what the machine trusts. Nothing is sent before the first call, so a wrong
    address or token shows there, as UNAVAILABLE or UNAUTHENTICATED.
    """
    return Client(channel(url, ca_file), token, Remote(url, token, ca_file))


def channel(url: str, ca_file: str | os.PathLike[str] | None = None) -> grpc.Channel:
    """The channel of `connect`, for services that have no method here."""
    address, trust = target(url), credentials(url, ca_file)
    if trust is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, trust, options=OPTIONS)


def target(url: str) -> str:
    """The host and port of a coordinator's address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.port:
        raise ValueError(f"{url!r} is not the address of a coordinator, such as https://coordinator-host:7443")
    return parts.netloc


def credentials(url: str, ca_file: str | os.PathLike[str] | None) -> grpc.ChannelCredentials | None:
    """Whom a connection to this address trusts; None = it is not encrypted."""
    if urlsplit(url).scheme == "https":
        return grpc.ssl_channel_credentials(Path(ca_file).read_bytes() if ca_file else None)
    if ca_file:
        raise ValueError(f"{url!r} is not encrypted, so no CA is needed; did you mean https?")
    return None


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries the token."""
    return (("authorization", f"Bearer {token.strip()}"),)


class Client:
    """A connection to a coordinator. Methods raise `KageError`; threads may share it."""

    def __init__(self, channel: grpc.Channel, token: str, remote: Remote) -> None:
        self._channel = channel
        self._remote = remote
        self._metadata = bearer(token)
        self._tasks: Any = task_service_pb2_grpc.TaskServiceStub(channel)
        self._server: Any = server_service_pb2_grpc.ServerServiceStub(channel)
        self._fleet: Any = fleet_service_pb2_grpc.FleetServiceStub(channel)
        self._access: Any = access_service_pb2_grpc.AccessServiceStub(channel)
        self._projects: Any = project_service_pb2_grpc.ProjectServiceStub(channel)
        self._checkpoints: Any = checkpoint_service_pb2_grpc.CheckpointServiceStub(channel)
        self._costs: Any = cost_service_pb2_grpc.CostServiceStub(channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and every watch on it. What was submitted goes on."""
        self._channel.close()

    def submit(self, spec: TaskSpec, request_id: str | None = None, *, wait_for_agent: bool = False) -> Task:
        """Stores a task and queues its sessions; when this returns, it is durable.

        A call of unknown outcome is sent once more under the same request id, which
        has the same effect as one call. Whoever wants to try again after that, or after
        a crash, gives a `request_id` of its own: the same id with the same spec always
        returns the same task.

        A task with a session that no known agent could run is refused with the reason
        NO_AGENT, unless it is to wait for one.
        """
        request = task_service_pb2.CreateTaskRequest(
            request_id=request_id or _fresh(), spec=spec, wait_for_agent=wait_for_agent
        )
        return self._twice(self._tasks.CreateTask, request).task

    def get(self, task_id: str, view: TaskView = TASK_VIEW_FULL) -> Task:
        """A task by its id, or by a prefix of it that only one task has; whole unless another
        view is asked for. All other calls give tasks of the view BASIC."""
        request = task_service_pb2.GetTaskRequest(task_id=task_id, view=view)
        return self._call(self._tasks.GetTask, request).task

    def list(
        self,
        project: str = "",
        filter: TaskFilter | None = None,
        order: TaskOrder = TASK_ORDER_NEWEST_FIRST,
    ) -> Iterator[Task]:
        """The tasks of a project that a filter takes, fetched in pages as they are read."""
        request = task_service_pb2.ListTasksRequest(project=project, filter=filter, order=order)
        return self._pages(self._tasks.ListTasks, request, "tasks")

    def cancel(self, task_id: str) -> Task:
        """Stops every session that has not ended. To cancel an ended task changes nothing."""
        request = task_service_pb2.CancelTaskRequest(request_id=_fresh(), task_id=task_id)
        return self._twice(self._tasks.CancelTask, request).task

    def report(self, task_id: str) -> Report:
        """The comparison of a task's sessions, best first; provisional while some run."""
        request = task_service_pb2.GetReportRequest(task_id=task_id)
        return self._call(self._tasks.GetReport, request).report

    def select(self, task_id: str, session: str) -> Task:
        """Says that this session's result is to be landed; "" takes that back."""
        request = task_service_pb2.SelectResultRequest(request_id=_fresh(), task_id=task_id, session=session)
        return self._twice(self._tasks.SelectResult, request).task

    def verify(self, task_id: str, session: str = "") -> Task:
        """Asks for verify of a session's result that nothing checked, as an unfinished one."""
        request = task_service_pb2.VerifyResultRequest(request_id=_fresh(), task_id=task_id, session=session)
        return self._twice(self._tasks.VerifyResult, request).task

    def diff(
        self,
        task_id: str,
        session: str = "",
        *,
        before: str = "base",
        after: str = "result",
        paths: Iterable[bytes] = (),
        files_only: bool = False,
        max_file_bytes: int = 0,
    ) -> Iterator[tuple[FileDiff, bytes]]:
        """What a session changed: each file with its patch, as they come.

        `before` and `after` name commits: "base", "result", "head", or a checkpoint by its
        number or its commit. A patch that is longer than `max_file_bytes` (1 MiB unless said
        otherwise) is cut, and its file says so.
        """
        request = task_service_pb2.GetDiffRequest(
            task_id=task_id,
            session=session,
            to=after,
            paths=paths,
            files_only=files_only,
            max_file_bytes=max_file_bytes,
        )
        # `from` is a word of Python's own.
        setattr(request, "from", before)
        call = self._tasks.GetDiff(request, metadata=self._metadata)
        file: FileDiff | None = None
        patch, ended = bytearray(), False
        try:
            for response in call:
                if response.HasField("patch"):
                    patch += response.patch
                elif response.HasField("file") or response.HasField("totals"):
                    if file is not None:
                        yield file, bytes(patch)
                    file, patch = response.file, bytearray()
                    ended = response.HasField("totals")
        except grpc.RpcError as error:
            raise KageError.of(error) from error
        finally:
            call.cancel()
        if not ended:
            raise KageError("UNAVAILABLE", "the difference ended before it was whole")

    def server(self) -> GetServerInfoResponse:
        """What the coordinator is: its version, what it speaks and what it takes at most."""
        return self._call(self._server.GetServerInfo, GetServerInfoRequest())

    def agents(self) -> tuple[Agent, ...]:
        """The worker machines, by name."""
        request = fleet_service_pb2.ListAgentsRequest()
        return tuple(self._pages(self._fleet.ListAgents, request, "agents"))

    def tokens(self) -> Iterator[Token]:
        """The bearer tokens, revoked ones included, without their secrets. For admins."""
        return self._pages(self._access.ListTokens, access_service_pb2.ListTokensRequest(), "tokens")

    def projects(self) -> Iterator[Project]:
        """The projects that have tasks or repositories, by name."""
        return self._pages(self._projects.ListProjects, project_service_pb2.ListProjectsRequest(), "projects")

    def repositories(self, project: str = "") -> Iterator[StoredRepository]:
        """The repositories of a project, by name."""
        request = project_service_pb2.ListRepositoriesRequest(project=project)
        return self._pages(self._projects.ListRepositories, request, "repositories")

    def checkpoints(self, task_id: str, session: str = "") -> Iterator[Checkpoint]:
        """The checkpoints of a task, or of one of its sessions."""
        request = checkpoint_service_pb2.ListCheckpointsRequest(task_id=task_id, session=session)
        return self._pages(self._checkpoints.ListCheckpoints, request, "checkpoints")

    def calls(self, filter: CallFilter | None = None) -> Iterator[LedgerCall]:
        """The ledger's rows of calls of models, oldest first."""
        request = cost_service_pb2.ListCallsRequest(filter=filter)
        return self._pages(self._costs.ListCalls, request, "calls")

    def costs(self, by: CostsBy, filter: CallFilter | None = None) -> Iterator[CostGroup]:
        """The ledger's rows, added up by something."""
        request = cost_service_pb2.GetCostsRequest(by=by, filter=filter)
        return self._pages(self._costs.GetCosts, request, "groups")

    def push(self, folder: str | os.PathLike[str], name: str, commit: str = "HEAD", *, project: str = "") -> str:
        """Sends a commit of the repository in `folder` to the coordinator's repository of this
        name, as the base of tasks. Returns its full id, for `Repository.base_commit`."""
        return self._remote.push(folder, name, commit, project)

    def fetch(self, folder: str | os.PathLike[str], task_id: str, session: str) -> str:
        """Fetches the result of a session, by its name, into the repository in `folder`. Returns the
        commit, which `refs/kage/results/SESSION_ID` keeps there."""
        task = self.get(task_id, TASK_VIEW_BASIC)
        return self._remote.fetch(folder, task.spec.repository.name, session_id(task, session), task.spec.project)

    def watch(
        self,
        task_id: str,
        *,
        cursor: str = "",
        output: Iterable[OutputStream] = (),
        session: str = "",
        follow: bool = True,
        patience: float = 60.0,
    ) -> Watch[Item]:
        """Everything that happens to a task, from the beginning or from a cursor on.

        `output` names the streams whose bytes are wanted besides events, `session` the
        only session that is. Without `follow` the watch ends after what is there now,
        otherwise with the task. A broken connection is made again from the last cursor
        on; only after `patience` seconds without success the error is raised.
        """
        request = task_service_pb2.WatchTaskRequest(
            task_id=task_id, cursor=cursor, output=output, session=session, follow=follow
        )

        def start(request: task_service_pb2.WatchTaskRequest) -> Any:
            return self._tasks.WatchTask(request, metadata=self._metadata)

        return Watch(start, request, patience)

    def watch_tasks(
        self,
        project: str = "",
        filter: TaskFilter | None = None,
        *,
        cursor: str = "",
        agents: bool = False,
        holds: bool = False,
        patience: float = 60.0,
    ) -> Watch[TasksItem]:
        """The tasks that a filter takes, as they are and as they change: a `Task` in place of what
        was known of it, a `TaskGone` for one that the filter takes no more, a `WatchReset`
        when all come anew, a `WatchCaughtUp` when everything was yielded that there was.

        With `agents` and `holds` also each agent, and which sessions wait and why. It does
        not end by itself; a broken connection is made again as by `watch`.
        """
        request = task_service_pb2.WatchTasksRequest(
            project=project, filter=filter, cursor=cursor, agents=agents, holds=holds
        )
        return Watch(lambda asked: self._tasks.WatchTasks(asked, metadata=self._metadata), request, patience)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, metadata=self._metadata, timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            raise KageError.of(error) from error

    def _pages(self, method: Any, request: Any, field: str) -> Iterator[Any]:
        """The items of every page, each page fetched when it is read."""
        while True:
            reply = self._call(method, request)
            yield from getattr(reply, field)
            request.page_token = reply.next_page_token
            if not request.page_token:
                return

    def _twice(self, method: Any, request: Any) -> Any:
        try:
            return self._call(method, request)
        except KageError as error:
            if error.reason != "UNAVAILABLE":
                raise
            time.sleep(error.retry_after or BACKOFF[0])
            return self._call(method, request)


class Watch(Iterator[_Found]):
    """A running watch: iterate over it. That of one task never repeats or skips an event or a
    byte; that of many yields states."""

    #: Where the watch is: what was yielded so far comes before it. Kept, it resumes a
    #: later watch of the same, also from another process.
    cursor: str

    def __init__(
        self,
        start: Callable[[Any], Any],
        request: Any,
        patience: float,
    ) -> None:
        self.cursor = request.cursor
        self._start = start
        self._request = request
        self._patience = patience
        self._failing_since: float | None = None
        self._delay = BACKOFF[0]
        self._closed = threading.Event()
        # Whoever closes may meet whoever connects again.
        self._calling = threading.Lock()
        self._call = start(request)

    def __next__(self) -> _Found:
        while True:
            try:
                response = next(self._call)
            except grpc.RpcError as error:
                if self._closed.is_set():
                    raise StopIteration from None
                self._again(KageError.of(error))
                continue
            self._failing_since, self._delay = None, BACKOFF[0]
            self.cursor = response.cursor
            kind = response.WhichOneof("item")
            # A newer coordinator tells something that this client does not know.
            if kind is not None:
                found: _Found = getattr(response, kind)
                return found

    def close(self) -> None:
        """Ends the watch; whoever iterates over it comes to the end."""
        with self._calling:
            self._closed.set()
            self._call.cancel()

    def _again(self, error: KageError) -> None:
        """Connects again from the cursor on, or raises; StopIteration when closed meanwhile."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if error.reason != "UNAVAILABLE" or now - self._failing_since >= self._patience:
            raise error
        # Many watchers of one coordinator do not come back in the same moment.
        if self._closed.wait(error.retry_after or self._delay * random.uniform(0.5, 1.0)):
            raise StopIteration
        self._delay = min(self._delay * 2, BACKOFF[1])
        self._request.cursor = self.cursor
        with self._calling:
            if self._closed.is_set():
                raise StopIteration
            self._call = self._start(self._request)


def session_id(task: Task, name: str) -> str:
    """The id of a session of a task. Raises NOT_FOUND without such a session."""
    for session in task.sessions:
        if session.name == name:
            return session.id
    raise KageError("NOT_FOUND", f"session {name!r} of task {task.id} was not found")


def _fresh() -> str:
    return uuid.uuid4().hex
