/**
 * How a call fails: the one error class of this package, read from `google.rpc` details.
 * Nothing else in the package looks at the codes of gRPC.
 */

import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** The domain of the reasons that a coordinator gives. */
const DOMAIN = "kage.v1";

/** The reasons that a coordinator gives today. A newer one may give others. */
export type Reason =
  | "INVALID_ARGUMENT"
  | "NOT_FOUND"
  | "CONFLICT"
  | "FAILED_PRECONDITION"
  | "NO_AGENT"
  | "OTHER_PROTOCOL"
  | "AGENT_ID_IN_USE"
  | "JOIN_TOKEN_UNKNOWN"
  | "JOIN_TOKEN_USED"
  | "JOIN_TOKEN_EXPIRED"
  | "JOIN_TOKEN_OTHER_PROJECT"
  | "JOINED_AGENT_REVOKED"
  | "UNAUTHENTICATED"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "UNAVAILABLE"
  | "UNIMPLEMENTED"
  | "INTERNAL";

/** A field of the request that is wrong. */
export interface Violation {
  readonly field: string;
  readonly problem: string;
}

/** A call that failed. `reason` is stable; the message is for people. */
export class KageError extends Error {
  override readonly name = "KageError";

  constructor(
    readonly reason: Reason | (string & {}),
    message: string,
    /** Every field that is known to be wrong, when the reason is INVALID_ARGUMENT. */
    readonly violations: readonly Violation[] = [],
    /** Milliseconds after which another try makes sense, when the coordinator said so. */
    readonly retryAfterMs?: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  /** The same failure with its facts. */
  static of(cause: unknown): KageError {
    if (cause instanceof KageError) {
      return cause;
    }
    const error = ConnectError.from(cause);
    const info = error.findDetails(ErrorInfoSchema).find((found) => found.domain === DOMAIN);
    const violations = error
      .findDetails(BadRequestSchema)
      .flatMap((bad) => bad.fieldViolations)
      .map(({ field, description }) => ({ field, problem: description }));
    const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
    const retryAfterMs = delay === undefined ? undefined : durationMs(delay);
    // A TypeError is how `fetch` says that there is no connection, or none any more.
    const cut = error.code === Code.Unknown && error.cause instanceof TypeError;
    const reason = info?.reason ?? (cut ? "UNAVAILABLE" : reasonOf(error.code));
    return new KageError(reason, error.rawMessage, violations, retryAfterMs, { cause });
  }
}

/** What a code means when the coordinator gave no reason: somebody else answered, or nobody did. */
function reasonOf(code: Code): Reason {
  switch (code) {
    case Code.InvalidArgument:
    case Code.OutOfRange:
      return "INVALID_ARGUMENT";
    case Code.NotFound:
      return "NOT_FOUND";
    case Code.AlreadyExists:
      return "CONFLICT";
    case Code.FailedPrecondition:
      return "FAILED_PRECONDITION";
    case Code.Unauthenticated:
      return "UNAUTHENTICATED";
    case Code.PermissionDenied:
      return "PERMISSION_DENIED";
    case Code.ResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    // A call that was cut may or may not have had its effect. `Aborted` is what
    // connect-node makes of a connection that was reset.
    case Code.Unavailable:
    case Code.Aborted:
    case Code.Canceled:
    case Code.DeadlineExceeded:
      return "UNAVAILABLE";
    case Code.Unimplemented:
      return "UNIMPLEMENTED";
    case Code.Unknown:
    case Code.Internal:
    case Code.DataLoss:
      return "INTERNAL";
  }
}
