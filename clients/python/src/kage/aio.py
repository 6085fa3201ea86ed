"""The client for asyncio: `kage.Client` with the same methods, awaited.

    async with kage.aio.connect("http://127.0.0.1:7443", token) as client:
        task = await client.submit(spec)
        async for item in client.watch(task.id):
            ...

A client belongs to the event loop in which it is made.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from kage.client import BACKOFF, CALL_TIMEOUT, OPTIONS, Item, TasksItem, bearer, credentials, session_id, target
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
from kage.v1.event_pb2 import OutputStream
from kage.v1.fleet_service_pb2 import Agent
from kage.v1.project_service_pb2 import Project, StoredRepository
from kage.v1.server_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from kage.v1.task_pb2 import TASK_VIEW_BASIC, TASK_VIEW_FULL, Report, Task, TaskSpec, TaskView
from kage.v1.task_service_pb2 import TASK_ORDER_NEWEST_FIRST, TaskFilter, TaskOrder

_Found = TypeVar("_Found")

# What a stream that has ended in good order gives; its types do not know it.
_EOF: Any = getattr(grpc.aio, "EOF")


def connect(url: str, token: str, ca_file: str | os.PathLike[str] | None = None) -> Client:
    """As `kage.connect`, in a running event loop."""
    address, trust = target(url), credentials(url, ca_file)
    channel = (
        grpc.aio.insecure_channel(address, options=OPTIONS)
        if trust is None
        else grpc.aio.secure_channel(address, trust, options=OPTIONS)
    )
    return Client(channel, token, Remote(url, token, ca_file))


class Client:
    """A connection to a coordinator. Methods raise `KageError`; `kage.Client` documents them."""

    def __init__(self, channel: Any, token: str, remote: Remote) -> None:
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

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and every watch on it. What was submitted goes on."""
        await self._channel.close()

    async def submit(self, spec: TaskSpec, request_id: str | None = None, *, wait_for_agent: bool = False) -> Task:
        """Stores a task and queues its sessions; when this returns, it is durable."""
        request = task_service_pb2.CreateTaskRequest(
            request_id=request_id or _fresh(), spec=spec, wait_for_agent=wait_for_agent
        )
        return (await self._twice(self._tasks.CreateTask, request)).task

    async def get(self, task_id: str, view: TaskView = TASK_VIEW_FULL) -> Task:
        """A task by its id, or by a prefix of it that only one task has."""
        request = task_service_pb2.GetTaskRequest(task_id=task_id, view=view)
        return (await self._call(self._tasks.GetTask, request)).task

    def list(
        self,
        project: str = "",
        filter: TaskFilter | None = None,
        order: TaskOrder = TASK_ORDER_NEWEST_FIRST,
    ) -> AsyncIterator[Task]:
        """The tasks of a project that a filter takes."""
        request = task_service_pb2.ListTasksRequest(project=project, filter=filter, order=order)
        return self._pages(self._tasks.ListTasks, request, "tasks")

    async def cancel(self, task_id: str) -> Task:
        """Stops every session that has not ended."""
        request = task_service_pb2.CancelTaskRequest(request_id=_fresh(), task_id=task_id)
        return (await self._twice(self._tasks.CancelTask, request)).task

    async def report(self, task_id: str) -> Report:
        """The comparison of a task's sessions, best first."""
        request = task_service_pb2.GetReportRequest(task_id=task_id)
        return (await self._call(self._tasks.GetReport, request)).report

    async def select(self, task_id: str, session: str) -> Task:
        """Says that this session's result is to be landed; "" takes that back."""
        request = task_service_pb2.SelectResultRequest(request_id=_fresh(), task_id=task_id, session=session)
        return (await self._twice(self._tasks.SelectResult, request)).task

    async def server(self) -> GetServerInfoResponse:
        """What the coordinator is."""
        return await self._call(self._server.GetServerInfo, GetServerInfoRequest())

    def agents(self) -> AsyncIterator[Agent]:
        """The worker machines, by name."""
        return self._pages(self._fleet.ListAgents, fleet_service_pb2.ListAgentsRequest(), "agents")

    def tokens(self) -> AsyncIterator[Token]:
        """The bearer tokens, without their secrets."""
        return self._pages(self._access.ListTokens, access_service_pb2.ListTokensRequest(), "tokens")

    def projects(self) -> AsyncIterator[Project]:
        """The projects that have tasks or repositories."""
        return self._pages(self._projects.ListProjects, project_service_pb2.ListProjectsRequest(), "projects")

    def repositories(self, project: str = "") -> AsyncIterator[StoredRepository]:
        """The repositories of a project."""
        request = project_service_pb2.ListRepositoriesRequest(project=project)
        return self._pages(self._projects.ListRepositories, request, "repositories")

    def checkpoints(self, task_id: str, session: str = "") -> AsyncIterator[Checkpoint]:
        """The checkpoints of a task, or of one of its sessions."""
        request = checkpoint_service_pb2.ListCheckpointsRequest(task_id=task_id, session=session)
        return self._pages(self._checkpoints.ListCheckpoints, request, "checkpoints")

    def calls(self, filter: CallFilter | None = None) -> AsyncIterator[LedgerCall]:
        """The ledger's rows of calls of models."""
        return self._pages(self._costs.ListCalls, cost_service_pb2.ListCallsRequest(filter=filter), "calls")

    def costs(self, by: CostsBy, filter: CallFilter | None = None) -> AsyncIterator[CostGroup]:
        """The ledger's rows, added up."""
        return self._pages(self._costs.GetCosts, cost_service_pb2.GetCostsRequest(by=by, filter=filter), "groups")

    async def push(self, folder: str | os.PathLike[str], name: str, commit: str = "HEAD", *, project: str = "") -> str:
        """Sends a commit as the base of tasks, and returns its full id."""
        return await asyncio.to_thread(self._remote.push, folder, name, commit, project)

    async def fetch(self, folder: str | os.PathLike[str], task_id: str, session: str) -> str:
        """Fetches the result of a session, and returns the commit."""
        task = await self.get(task_id, TASK_VIEW_BASIC)
        name, project = task.spec.repository.name, task.spec.project
        return await asyncio.to_thread(self._remote.fetch, folder, name, session_id(task, session), project)

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
        """Everything that happens to a task, over broken connections."""
        request = task_service_pb2.WatchTaskRequest(
            task_id=task_id, cursor=cursor, output=output, session=session, follow=follow
        )
        return Watch(lambda asked: self._tasks.WatchTask(asked, metadata=self._metadata), request, patience)

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
        """The tasks that a filter takes, as they are and as they change."""
        request = task_service_pb2.WatchTasksRequest(
            project=project, filter=filter, cursor=cursor, agents=agents, holds=holds
        )
        return Watch(lambda asked: self._tasks.WatchTasks(asked, metadata=self._metadata), request, patience)

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            raise KageError.of(error) from error

    async def _twice(self, method: Any, request: Any) -> Any:
        try:
            return await self._call(method, request)
        except KageError as error:
            if error.reason != "UNAVAILABLE":
                raise
            await asyncio.sleep(error.retry_after or BACKOFF[0])
            return await self._call(method, request)

    async def _pages(self, method: Any, request: Any, field: str) -> AsyncIterator[Any]:
        """The items of every page, each page fetched when it is read."""
        while True:
            reply = await self._call(method, request)
            for item in getattr(reply, field):
                yield item
            request.page_token = reply.next_page_token
            if not request.page_token:
                return


class Watch(AsyncIterator[_Found], Generic[_Found]):
    """A running watch, as `kage.Watch`. To stop it early, `close` it or cancel whoever iterates."""

    #: Where the watch is: what was yielded so far comes before it.
    cursor: str

    def __init__(self, start: Callable[[Any], Any], request: Any, patience: float) -> None:
        self.cursor = request.cursor
        self._start = start
        self._request = request
        self._patience = patience
        self._failing_since: float | None = None
        self._delay = BACKOFF[0]
        self._closed = False
        self._call = start(request)

    async def __anext__(self) -> _Found:
        while not self._closed:
            try:
                response = await self._call.read()
            except (grpc.RpcError, asyncio.CancelledError) as error:
                if self._closed:
                    break
                if isinstance(error, asyncio.CancelledError):
                    self._call.cancel()
                    raise
                await self._again(KageError.of(error))
                continue
            if response is _EOF:
                break
            self._failing_since, self._delay = None, BACKOFF[0]
            self.cursor = response.cursor
            kind = response.WhichOneof("item")
            # A newer coordinator tells something that this client does not know.
            if kind is not None:
                found: _Found = getattr(response, kind)
                return found
        raise StopAsyncIteration

    def close(self) -> None:
        """Ends the watch; whoever iterates over it comes to the end."""
        self._closed = True
        self._call.cancel()

    async def _again(self, error: KageError) -> None:
        """Connects again from the cursor on, or raises."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if error.reason != "UNAVAILABLE" or now - self._failing_since >= self._patience:
            raise error
        # Many watchers of one coordinator do not come back in the same moment.
        await asyncio.sleep(error.retry_after or self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, BACKOFF[1])
        self._request.cursor = self.cursor
        if not self._closed:
            self._call = self._start(self._request)


def _fresh() -> str:
    return uuid.uuid4().hex
