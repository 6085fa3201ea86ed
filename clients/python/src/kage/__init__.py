"""Runs coding tasks on a Kage Bunshin coordinator.

    import kage

    with kage.connect("http://127.0.0.1:7443", token) as client:
        task = client.submit(kage.TaskSpec(prompt="...", assignments=[...]))
        for item in client.watch(task.id, output=[kage.OUTPUT_STREAM_STDOUT]):
            ...
        print(client.report(task.id).best.session)

Every message of the protocol is in `kage.v1`; those a client needs are also here.
"""

from kage import aio
from kage.client import Client, Item, TasksItem, Watch, connect
from kage.errors import KageError, Violation
from kage.v1.diff_pb2 import FileDiff, FileStatus
from kage.v1.event_pb2 import (
    OUTPUT_STREAM_STDERR,
    OUTPUT_STREAM_STDOUT,
    OUTPUT_STREAM_TRANSCRIPT,
    Event,
    OutputStream,
)
from kage.v1.fleet_service_pb2 import Agent
from kage.v1.task_pb2 import (
    TASK_VIEW_BASIC,
    TASK_VIEW_FULL,
    Assignment,
    Policy,
    Report,
    ReportRow,
    Repository,
    Session,
    SessionState,
    Task,
    TaskSpec,
    TaskState,
    TaskView,
    VerifyPolicy,
)
from kage.v1.task_service_pb2 import (
    TASK_ORDER_NEWEST_FIRST,
    TASK_ORDER_OLDEST_FIRST,
    Hold,
    OutputChunk,
    SessionEvent,
    TaskFilter,
    TaskGone,
    TaskOrder,
    WatchCaughtUp,
    WatchReset,
)

__all__ = [
    "OUTPUT_STREAM_STDERR",
    "OUTPUT_STREAM_STDOUT",
    "OUTPUT_STREAM_TRANSCRIPT",
    "TASK_ORDER_NEWEST_FIRST",
    "TASK_ORDER_OLDEST_FIRST",
    "TASK_VIEW_BASIC",
    "TASK_VIEW_FULL",
    "Agent",
    "Assignment",
    "Client",
    "Event",
    "FileDiff",
    "FileStatus",
    "Hold",
    "Item",
    "KageError",
    "OutputChunk",
    "OutputStream",
    "Policy",
    "Report",
    "ReportRow",
    "Repository",
    "Session",
    "SessionEvent",
    "SessionState",
    "Task",
    "TaskFilter",
    "TaskGone",
    "TaskOrder",
    "TaskSpec",
    "TaskState",
    "TaskView",
    "TasksItem",
    "VerifyPolicy",
    "Violation",
    "Watch",
    "WatchCaughtUp",
    "WatchReset",
    "aio",
    "connect",
]
