"""How a call fails: the one exception of this package, read from `google.rpc` details.

Nothing else in the package looks at gRPC's own status codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

#: The domain of the reasons that a coordinator gives.
DOMAIN = "kage.v1"

# What a status means when the coordinator gave no reason: somebody else answered, or
# nobody did. A call that was cut may or may not have had its effect.
_REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    grpc.StatusCode.OUT_OF_RANGE: "INVALID_ARGUMENT",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.ALREADY_EXISTS: "CONFLICT",
    grpc.StatusCode.ABORTED: "CONFLICT",
    grpc.StatusCode.FAILED_PRECONDITION: "FAILED_PRECONDITION",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "UNAVAILABLE",
    grpc.StatusCode.UNIMPLEMENTED: "UNIMPLEMENTED",
}


@dataclass(frozen=True)
class Violation:
    """A field of the request that is wrong."""

    field: str
    problem: str


class KageError(Exception):
    """A call that failed. `reason` is stable; the text is for people."""

    #: One of INVALID_ARGUMENT, NOT_FOUND, CONFLICT, FAILED_PRECONDITION, NO_AGENT, OTHER_PROTOCOL, AGENT_ID_IN_USE,
    #: UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, INTERNAL,
    #: and of joining JOIN_TOKEN_UNKNOWN, JOIN_TOKEN_USED, JOIN_TOKEN_EXPIRED,
    #: JOIN_TOKEN_OTHER_PROJECT, JOINED_AGENT_REVOKED. A newer coordinator may give others.
    reason: str
    #: Every field that is known to be wrong, when the reason is INVALID_ARGUMENT.
    violations: tuple[Violation, ...]
    #: Seconds after which another try makes sense, when the coordinator said so.
    retry_after: float | None

    def __init__(
        self,
        reason: str,
        message: str,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.violations = violations
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"KageError({self.reason}: {self})"

    @classmethod
    def of(cls, error: grpc.RpcError) -> KageError:
        """The same failure with its facts."""
        # grpcio promises these methods on what a call raises, and types them nowhere.
        code: grpc.StatusCode = error.code()
        reason = _REASONS.get(code, "INTERNAL")
        violations: tuple[Violation, ...] = ()
        retry_after = None
        for detail in _details(error):
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                if info.domain == DOMAIN:
                    reason = info.reason
            elif detail.Unpack(bad):
                violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(reason, error.details() or code.name, violations, retry_after)


def _details(error: grpc.RpcError) -> list[Any]:
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            return list(status_pb2.Status.FromString(value).details)
    return []
