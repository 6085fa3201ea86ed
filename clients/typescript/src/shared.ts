/** What both entries of the package export: the client, its errors, and the messages that a client needs. */

export {
  type ChangedFile,
  Client,
  type DiffOptions,
  type Item,
  type ListOptions,
  type Spec,
  type SubmitOptions,
  type TasksItem,
  Watch,
  type WatchOptions,
  type WatchTasksOptions,
} from "./client.js";
export { KageError, type Reason, type Violation } from "./errors.js";
export { type FileDiff, FileStatus } from "./gen/kage/v1/diff_pb.js";
export { type Event, OutputStream } from "./gen/kage/v1/event_pb.js";
export { type Agent, AgentState } from "./gen/kage/v1/fleet_service_pb.js";
export {
  type Report,
  type ReportRow,
  Risk,
  type Session,
  SessionState,
  type Task,
  TaskState,
  TaskView,
  VerdictKind,
} from "./gen/kage/v1/task_pb.js";
export { type Hold, type OutputChunk, type SessionEvent, TaskOrder } from "./gen/kage/v1/task_service_pb.js";
export { type Money, Provenance, type Usage } from "./gen/kage/v1/value_pb.js";
