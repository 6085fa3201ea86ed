/**
 * What a program asks of a coordinator: run tasks, watch them, compare their results.
 *
 * Messages are those of `kage.v1`, unchanged; their documentation is in the `.proto`
 * files. This file adds request ids, one safe retry, pages, and watches that survive a broken
 * connection; `node.ts` and `browser.ts` add the connection and the token. It runs in both.
 */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { createClient, type Client as Stub, type Transport } from "@connectrpc/connect";

import { KageError } from "./errors.js";
import { AccessService, type Token } from "./gen/kage/v1/access_service_pb.js";
import { type Checkpoint, CheckpointService } from "./gen/kage/v1/checkpoint_service_pb.js";
import {
  type CallFilterSchema,
  type CostGroup,
  type CostsBy,
  CostService,
  type LedgerCall,
} from "./gen/kage/v1/cost_service_pb.js";
import type { FileDiff } from "./gen/kage/v1/diff_pb.js";
import type { OutputStream } from "./gen/kage/v1/event_pb.js";
import { type Agent, FleetService } from "./gen/kage/v1/fleet_service_pb.js";
import { type Project, ProjectService, type StoredRepository } from "./gen/kage/v1/project_service_pb.js";
import { type GetServerInfoResponse, ServerService } from "./gen/kage/v1/server_service_pb.js";
import { type Report, type Task, type TaskSpecSchema, TaskView } from "./gen/kage/v1/task_pb.js";
import {
  type TaskFilterSchema,
  type TaskOrder,
  TaskService,
  type WatchTaskResponse,
  type WatchTasksResponse,
} from "./gen/kage/v1/task_service_pb.js";

/** A task to run, as a plain object: fields that are left out have their defaults. */
export type Spec = MessageInitShape<typeof TaskSpecSchema>;

/** What a watch yields. The task comes first, and again whenever it changed state. */
export type Item = Exclude<WatchTaskResponse["item"], { case: undefined }>;

/** What a watch of many tasks yields. `reset` = forget the tasks that were yielded so far. */
export type TasksItem = Exclude<WatchTasksResponse["item"], { case: undefined }>;

/** How long one call may take; a watch may take forever. */
const CALL_TIMEOUT_MS = 30_000;
/** How long a watch waits before it connects again: at first, at most. */
const BACKOFF_MS = { first: 100, most: 2_000 } as const;

/** What {@link Client.submit} may be told. */
export interface SubmitOptions {
  /** Names this submission: the same id with the same spec always returns the same task. */
  readonly requestId?: string;
  /** Take it although no known agent could run it now; without it, it is refused with NO_AGENT. */
  readonly waitForAgent?: boolean;
}

/** What {@link Client.list} may be told. */
export interface ListOptions {
  /** Which tasks; without it, all of them. */
  readonly filter?: MessageInitShape<typeof TaskFilterSchema>;
  /** Which come first. */
  readonly order?: TaskOrder;
}

/** What {@link Client.diff} may be told. Commits are `base`, `result`, `head`, or a checkpoint's number or commit. */
export interface DiffOptions {
  /** The session, by name; may be left out when the task has one. */
  readonly session?: string;
  /** The commit before; without it, the base. */
  readonly from?: string;
  /** The commit after; without it, the result. */
  readonly to?: string;
  /** The only files and folders that are wanted. */
  readonly paths?: readonly Uint8Array[];
  /** True = only which files, without their patches. */
  readonly filesOnly?: boolean;
  /** A patch that is longer is cut, and its file says so; 1 MiB unless said otherwise. */
  readonly maxFileBytes?: number;
}

/** A file of a difference. */
export interface ChangedFile {
  readonly file: FileDiff;
  /** For `git apply`. */
  readonly patch: Uint8Array;
}

/** What {@link Client.watch} may be told. */
export interface WatchOptions {
  /** Where to begin; from an earlier watch of the same task. */
  readonly cursor?: string;
  /** Streams whose bytes are wanted besides events. */
  readonly output?: readonly OutputStream[];
  /** The only session that is wanted, by name. */
  readonly session?: string;
  /** False = end after what is there now; otherwise the watch ends with the task. */
  readonly follow?: boolean;
  /** How long to go on trying when the coordinator cannot be reached. */
  readonly patienceMs?: number;
}

/** What {@link Client.watchTasks} may be told. */
export interface WatchTasksOptions {
  /** Which tasks; without it, all of the project. */
  readonly filter?: MessageInitShape<typeof TaskFilterSchema>;
  /** Where to begin; from an earlier watch of the same project and filter. */
  readonly cursor?: string;
  /** True = the agents, too. */
  readonly agents?: boolean;
  /** True = which sessions wait and why, too. */
  readonly holds?: boolean;
  /** How long to go on trying when the coordinator cannot be reached. */
  readonly patienceMs?: number;
}

/** A connection to a coordinator. Methods reject with `KageError`. */
export class Client {
  readonly #tasks: Stub<typeof TaskService>;
  readonly #fleet: Stub<typeof FleetService>;
  readonly #server: Stub<typeof ServerService>;
  readonly #access: Stub<typeof AccessService>;
  readonly #projects: Stub<typeof ProjectService>;
  readonly #checkpoints: Stub<typeof CheckpointService>;
  readonly #costs: Stub<typeof CostService>;
  readonly #close: () => void;

  /** Over any transport of Connect that adds the token; `connect` makes the usual one. */
  constructor(transport: Transport, close: () => void = () => {}) {
    this.#tasks = createClient(TaskService, transport);
    this.#fleet = createClient(FleetService, transport);
    this.#server = createClient(ServerService, transport);
    this.#access = createClient(AccessService, transport);
    this.#projects = createClient(ProjectService, transport);
    this.#checkpoints = createClient(CheckpointService, transport);
    this.#costs = createClient(CostService, transport);
    this.#close = close;
  }

  /** Ends the connection and every call on it. What was submitted goes on. */
  close(): void {
    this.#close();
  }

  /**
   * Stores a task and queues its sessions; when this resolves, it is durable.
   *
   * A call of unknown outcome is sent once more under the same request id, which has the
   * same effect as one call. Whoever wants to try again after that, or after a crash,
   * gives a `requestId` of its own.
   */
  async submit(spec: Spec, { requestId = fresh(), waitForAgent = false }: SubmitOptions = {}): Promise<Task> {
    const request = { requestId, spec, waitForAgent };
    const reply = await twice(() => this.#tasks.createTask(request, { timeoutMs: CALL_TIMEOUT_MS }));
    return present(reply.task);
  }

  /**
   * A task by its id, or by a prefix of it that only one task has; whole unless another view is
   * asked for. All other calls give tasks of the view BASIC.
   */
  async get(taskId: string, view = TaskView.FULL): Promise<Task> {
    const reply = await once(() => this.#tasks.getTask({ taskId, view }, { timeoutMs: CALL_TIMEOUT_MS }));
    return present(reply.task);
  }

  /** The tasks of a project that a filter takes, newest first unless asked otherwise, fetched in pages as they are read. */
  list(project = "", options: ListOptions = {}): AsyncGenerator<Task, void, undefined> {
    return pages(
      (pageToken) => this.#tasks.listTasks({ ...options, project, pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.tasks,
    );
  }

  /** Stops every session that has not ended. To cancel an ended task changes nothing. */
  async cancel(taskId: string): Promise<Task> {
    const requestId = fresh();
    const reply = await twice(() => this.#tasks.cancelTask({ requestId, taskId }, { timeoutMs: CALL_TIMEOUT_MS }));
    return present(reply.task);
  }

  /** The comparison of a task's sessions, best first; provisional while some run. */
  async report(taskId: string): Promise<Report> {
    const reply = await once(() => this.#tasks.getReport({ taskId }, { timeoutMs: CALL_TIMEOUT_MS }));
    return present(reply.report);
  }

  /** Says that this session's result is to be landed; an empty name takes that back. */
  async select(taskId: string, session: string): Promise<Task> {
    const request = { requestId: fresh(), taskId, session };
    const reply = await twice(() => this.#tasks.selectResult(request, { timeoutMs: CALL_TIMEOUT_MS }));
    return present(reply.task);
  }

  /** What a session changed: each file with its patch, as they come. */
  async *diff(taskId: string, { paths = [], ...options }: DiffOptions = {}): AsyncGenerator<ChangedFile, void, undefined> {
    const request = { ...options, taskId, paths: [...paths] };
    let file: FileDiff | undefined;
    let pieces: Uint8Array[] = [];
    let ended = false;
    try {
      for await (const { item } of this.#tasks.getDiff(request)) {
        if (item.case === "patch") {
          pieces.push(item.value);
        } else if (item.case === "file" || item.case === "totals") {
          if (file !== undefined) {
            yield { file, patch: concat(pieces) };
          }
          pieces = [];
          file = item.case === "file" ? item.value : undefined;
          ended = item.case === "totals";
        }
      }
    } catch (cause) {
      throw KageError.of(cause);
    }
    if (!ended) {
      throw new KageError("UNAVAILABLE", "the difference ended before it was whole");
    }
  }

  /** What the coordinator is: its version, what it speaks and what it takes at most. */
  async server(): Promise<GetServerInfoResponse> {
    return await once(() => this.#server.getServerInfo({}, { timeoutMs: CALL_TIMEOUT_MS }));
  }

  /** The worker machines, by name: all of them, however many pages they fill. */
  async agents(): Promise<Agent[]> {
    const agents: Agent[] = [];
    const every = pages(
      (pageToken) => this.#fleet.listAgents({ pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.agents,
    );
    for await (const agent of every) {
      agents.push(agent);
    }
    return agents;
  }

  /** The bearer tokens, revoked ones included, without their secrets. For admins. */
  tokens(): AsyncGenerator<Token, void, undefined> {
    return pages(
      (pageToken) => this.#access.listTokens({ pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.tokens,
    );
  }

  /** The projects that have tasks or repositories, by name. */
  projects(): AsyncGenerator<Project, void, undefined> {
    return pages(
      (pageToken) => this.#projects.listProjects({ pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.projects,
    );
  }

  /** The repositories of a project, by name. */
  repositories(project = ""): AsyncGenerator<StoredRepository, void, undefined> {
    return pages(
      (pageToken) => this.#projects.listRepositories({ project, pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.repositories,
    );
  }

  /** The checkpoints of a task, or of one of its sessions. */
  checkpoints(taskId: string, session = ""): AsyncGenerator<Checkpoint, void, undefined> {
    return pages(
      (pageToken) => this.#checkpoints.listCheckpoints({ taskId, session, pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.checkpoints,
    );
  }

  /** The ledger's rows of calls of models, oldest first. */
  calls(filter: MessageInitShape<typeof CallFilterSchema> = {}): AsyncGenerator<LedgerCall, void, undefined> {
    return pages(
      (pageToken) => this.#costs.listCalls({ filter, pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.calls,
    );
  }

  /** The ledger's rows, added up by something. */
  costs(by: CostsBy, filter: MessageInitShape<typeof CallFilterSchema> = {}): AsyncGenerator<CostGroup, void, undefined> {
    return pages(
      (pageToken) => this.#costs.getCosts({ by, filter, pageToken }, { timeoutMs: CALL_TIMEOUT_MS }),
      (reply) => reply.groups,
    );
  }

  /**
   * Everything that happens to a task, from the beginning or from a cursor on. A broken
   * connection is made again from the last cursor on; only when that does not succeed for
   * `patienceMs` (a minute, unless said otherwise) the error is thrown.
   */
  watch(taskId: string, { output = [], session = "", follow = true, ...options }: WatchOptions = {}): Watch<Item> {
    const call: Call<Item> = (cursor, signal) =>
      this.#tasks.watchTask({ taskId, cursor, output: [...output], session, follow }, { signal });
    return new Watch(call, options);
  }

  /**
   * The tasks that a filter takes, as they are and as they change: a `task` in place of what was
   * known of it, a `gone` for one that the filter takes no more, a `reset` when all come anew, a
   * `caughtUp` when everything was yielded that there was. It does not end by itself; a broken
   * connection is made again as by {@link watch}.
   */
  watchTasks(project = "", { filter, agents = false, holds = false, ...options }: WatchTasksOptions = {}): Watch<TasksItem> {
    const call: Call<TasksItem> = (cursor, signal) =>
      this.#tasks.watchTasks({ project, cursor, agents, holds, ...(filter && { filter }) }, { signal });
    return new Watch(call, options);
  }
}

/** Begins a watch behind a cursor. */
type Call<Found> = (
  cursor: string,
  signal: AbortSignal,
) => AsyncIterable<{ cursor: string; item: Found | { case: undefined } }>;

/**
 * A running watch: iterate over it, once. That of one task never repeats or skips an event or a
 * byte; that of many yields states.
 */
export class Watch<Found extends { case: string } = Item> implements AsyncIterable<Found> {
  readonly #call: Call<Found>;
  readonly #patienceMs: number;
  readonly #closing = new AbortController();
  #cursor: string;

  /** What {@link Client.watch} and {@link Client.watchTasks} call. */
  constructor(call: Call<Found>, { cursor = "", patienceMs = 60_000 }: Pick<WatchOptions, "cursor" | "patienceMs">) {
    this.#call = call;
    this.#cursor = cursor;
    this.#patienceMs = patienceMs;
  }

  /**
   * Where the watch is: what was yielded so far comes before it. Kept, it resumes a later
   * watch of the same, also from another process.
   */
  get cursor(): string {
    return this.#cursor;
  }

  /** Ends the watch; whoever iterates over it comes to the end. */
  close(): void {
    this.#closing.abort();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Found, void, undefined> {
    const { signal } = this.#closing;
    let failingSince: number | undefined;
    let delayMs: number = BACKOFF_MS.first;
    try {
      while (!signal.aborted) {
        try {
          for await (const response of this.#call(this.#cursor, signal)) {
            failingSince = undefined;
            delayMs = BACKOFF_MS.first;
            this.#cursor = response.cursor;
            // A newer coordinator tells something that this client does not know.
            if (response.item.case !== undefined) {
              yield response.item;
            }
          }
          return;
        } catch (cause) {
          if (signal.aborted) {
            return;
          }
          const error = KageError.of(cause);
          failingSince ??= performance.now();
          if (error.reason !== "UNAVAILABLE" || performance.now() - failingSince >= this.#patienceMs) {
            throw error;
          }
          // Many watchers of one coordinator do not come back in the same moment.
          const wait = error.retryAfterMs ?? delayMs * (0.5 + Math.random() / 2);
          await sleep(wait, signal);
          delayMs = Math.min(delayMs * 2, BACKOFF_MS.most);
        }
      }
    } finally {
      // Whoever stops iterating ends the call, too.
      this.#closing.abort();
    }
  }
}

/** The items of every page, each page fetched when it is read. */
async function* pages<Reply extends { nextPageToken: string }, Found>(
  fetch: (pageToken: string) => Promise<Reply>,
  items: (reply: Reply) => readonly Found[],
): AsyncGenerator<Found, void, undefined> {
  let pageToken = "";
  do {
    const reply = await once(() => fetch(pageToken));
    yield* items(reply);
    pageToken = reply.nextPageToken;
  } while (pageToken !== "");
}

async function once<Reply>(call: () => Promise<Reply>): Promise<Reply> {
  try {
    return await call();
  } catch (cause) {
    throw KageError.of(cause);
  }
}

/** For calls that carry a request id, so that two have the effect of one. */
async function twice<Reply>(call: () => Promise<Reply>): Promise<Reply> {
  try {
    return await once(call);
  } catch (error) {
    if (!(error instanceof KageError) || error.reason !== "UNAVAILABLE") {
      throw error;
    }
    await sleep(error.retryAfterMs ?? BACKOFF_MS.first);
    return await once(call);
  }
}

function present<Value>(value: Value | undefined): Value {
  if (value === undefined) {
    throw new KageError("INTERNAL", "the coordinator's reply is empty");
  }
  return value;
}

/** A new request id. (`crypto.randomUUID` is not in pages that came without TLS.) */
function fresh(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Waits, until the signal at the latest. */
function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) {
      resolve();
      return;
    }
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done);
  });
}

function concat(pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
