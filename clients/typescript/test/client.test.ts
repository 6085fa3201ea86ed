/** What the client does by itself, against a coordinator in memory that fails on purpose. */

import assert from "node:assert/strict";
import { test } from "node:test";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { FleetService } from "../src/gen/kage/v1/fleet_service_pb.js";
import {
  type CreateTaskRequest,
  type GetDiffRequest,
  TaskService,
  type WatchTaskRequest,
  type WatchTasksResponseSchema,
} from "../src/gen/kage/v1/task_service_pb.js";
import { Client, connect, KageError } from "../src/index.js";

/** Fails as often as it is told, then answers. */
class Flaky {
  failures: ConnectError[] = [];
  created: CreateTaskRequest[] = [];
  watched: WatchTaskRequest[] = [];

  readonly client = new Client(
    createRouterTransport(({ service }) => {
      const fail = (): void => {
        const failure = this.failures.shift();
        if (failure !== undefined) {
          throw failure;
        }
      };
      service(TaskService, {
        createTask: (request) => {
          this.created.push(request);
          fail();
          return { task: { id: "a" } };
        },
        watchTask: async function* (this: Flaky, request: WatchTaskRequest) {
          this.watched.push(request);
          yield { cursor: "1", item: { case: "task" as const, value: { id: "a" } } };
          // What a newer coordinator may say.
          yield { cursor: "2" };
          fail();
        }.bind(this),
      });
    }),
  );
}

test("lists are read to their last page", async () => {
  const asked: string[] = [];
  const client = new Client(
    createRouterTransport(({ service }) => {
      service(FleetService, {
        listAgents: ({ pageToken }) => {
          asked.push(pageToken);
          const page = Number(pageToken || "1");
          return { agents: [{ name: `a${page}` }], nextPageToken: page < 3 ? `${page + 1}` : "" };
        },
      });
      service(TaskService, {
        listTasks: ({ pageToken }) => {
          asked.push(pageToken);
          const page = Number(pageToken || "1");
          return { tasks: [{ id: `t${page}` }], nextPageToken: page < 3 ? `${page + 1}` : "" };
        },
      });
    }),
  );
  assert.deepEqual((await client.agents()).map(({ name }) => name), ["a1", "a2", "a3"]);
  const tasks: string[] = [];
  for await (const { id } of client.list()) {
    tasks.push(id);
  }
  assert.deepEqual(tasks, ["t1", "t2", "t3"]);
  assert.deepEqual(asked, ["", "2", "3", "", "2", "3"]);
});

const failing = (code: Code): ConnectError => new ConnectError("words for people", code);

test("submit tries once more under the same request id", async () => {
  const flaky = new Flaky();
  flaky.failures = [failing(Code.Unavailable)];
  assert.equal((await flaky.client.submit({})).id, "a");
  assert.equal(flaky.created.length, 2);
  assert.ok(flaky.created[0]?.requestId);
  assert.deepEqual(flaky.created[0], flaky.created[1]);
  await flaky.client.submit({});
  assert.notEqual(flaky.created[2]?.requestId, flaky.created[0]?.requestId);
});

test("submit does not try a third time, or what is wrong", async () => {
  for (const [code, reason, calls] of [
    [Code.Unavailable, "UNAVAILABLE", 2],
    [Code.InvalidArgument, "INVALID_ARGUMENT", 1],
  ] as const) {
    const flaky = new Flaky();
    flaky.failures = [failing(code), failing(code), failing(code)];
    await assert.rejects(flaky.client.submit({}), { name: "KageError", reason });
    assert.equal(flaky.created.length, calls);
  }
});

test("a watch resumes from its cursor", async () => {
  const flaky = new Flaky();
  flaky.failures = [failing(Code.Unavailable)];
  const watch = flaky.client.watch("a");
  let items = 0;
  for await (const item of watch) {
    assert.equal(item.case, "task");
    items += 1;
  }
  assert.equal(items, 2);
  assert.deepEqual(
    flaky.watched.map((request) => request.cursor),
    ["", "2"],
  );
  assert.equal(watch.cursor, "2");
});

test("a watch of many tasks resumes from its cursor", async () => {
  type Told = MessageInitShape<typeof WatchTasksResponseSchema>;
  const asked: string[] = [];
  const client = new Client(
    createRouterTransport(({ service }) => {
      service(TaskService, {
        watchTasks: async function* ({ cursor, agents, filter }): AsyncGenerator<Told> {
          asked.push(`${cursor} ${agents} ${filter?.repository}`);
          yield { cursor, item: { case: "reset" as const, value: {} } };
          yield { cursor: `${cursor}+`, item: { case: "task" as const, value: { id: "a" } } };
          throw failing(Code.Unavailable);
        },
      });
    }),
  );
  const told: string[] = [];
  const watch = client.watchTasks("p", { agents: true, filter: { repository: "r" } });
  for await (const item of watch) {
    told.push(item.case);
    if (told.length === 4) {
      watch.close();
    }
  }
  assert.deepEqual(told, ["reset", "task", "reset", "task"]);
  assert.deepEqual(asked, [" true r", "+ true r"]);
  assert.equal(watch.cursor, "++");
});

test("a watch does not resume after other errors, or without patience", async () => {
  for (const [code, patienceMs, reason] of [
    [Code.NotFound, 60_000, "NOT_FOUND"],
    [Code.Unavailable, 0, "UNAVAILABLE"],
  ] as const) {
    const flaky = new Flaky();
    flaky.failures = [failing(code)];
    await assert.rejects(
      async () => {
        for await (const _ of flaky.client.watch("a", { patienceMs })) {
        }
      },
      { name: "KageError", reason },
    );
    assert.equal(flaky.watched.length, 1);
  }
});

test("a difference is put together, and a broken one is an error", async () => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
  const client = new Client(
    createRouterTransport(({ service }) => {
      service(TaskService, {
        getDiff: async function* ({ session }: GetDiffRequest) {
          yield { item: { case: "header" as const, value: { session: "one" } } };
          for (const name of ["a", "b"]) {
            yield { item: { case: "file" as const, value: { path: bytes(name) } } };
            yield { item: { case: "patch" as const, value: bytes(`+${name}`) } };
            // What a newer coordinator may say.
            yield {};
            yield { item: { case: "patch" as const, value: bytes("!\n") } };
          }
          if (session !== "broken") {
            yield { item: { case: "totals" as const, value: { files: 2n } } };
          }
        },
      });
    }),
  );
  const read = async (session: string): Promise<string[]> => {
    const told: string[] = [];
    for await (const { file, patch } of client.diff("a", { session })) {
      told.push(`${Buffer.from(file.path)}: ${Buffer.from(patch)}`);
    }
    return told;
  };
  assert.deepEqual(await read("one"), ["a: +a!\n", "b: +b!\n"]);
  await assert.rejects(read("broken"), { reason: "UNAVAILABLE" });
});

test("details are read", async () => {
  const flaky = new Flaky();
  flaky.failures = [
    new ConnectError("words for people", Code.InvalidArgument, undefined, [
      { desc: ErrorInfoSchema, value: { reason: "SOMETHING_NEW", domain: "kage.v1" } },
      { desc: BadRequestSchema, value: { fieldViolations: [{ field: "spec.prompt", description: "is empty" }] } },
      { desc: RetryInfoSchema, value: { retryDelay: { seconds: 1n, nanos: 500_000_000 } } },
    ]),
  ];
  await assert.rejects(flaky.client.submit({}), (error) => {
    assert.ok(error instanceof KageError);
    assert.equal(error.reason, "SOMETHING_NEW");
    assert.equal(error.message, "words for people");
    assert.deepEqual(error.violations, [{ field: "spec.prompt", problem: "is empty" }]);
    assert.equal(error.retryAfterMs, 1500);
    return true;
  });
});

test("reasons of other domains are not taken", async () => {
  const flaky = new Flaky();
  const info = { desc: ErrorInfoSchema, value: { reason: "THEIRS", domain: "example.org" } };
  flaky.failures = [new ConnectError("no", Code.NotFound, undefined, [info])];
  await assert.rejects(flaky.client.submit({}), { reason: "NOT_FOUND" });
});

test("an address that cannot be one is refused", () => {
  for (const url of ["", "127.0.0.1:7443", "ftp://127.0.0.1:7443", "http://127.0.0.1", "https://coordinator-host"]) {
    assert.throws(() => connect(url, "token"), TypeError, url);
  }
  // A URL forgets the port that its scheme has by default.
  for (const url of ["http://127.0.0.1:80", "https://coordinator-host:443/"]) {
    connect(url, "token").close();
  }
});

test("a CA is for https and has to be there", () => {
  assert.throws(() => connect("http://127.0.0.1:7443", "token", { caFile: "ca.pem" }), TypeError);
  assert.throws(() => connect("https://127.0.0.1:7443", "token", { caFile: "/nowhere/ca.pem" }), { code: "ENOENT" });
});

test("nobody there is unavailable", async (t) => {
  const client = connect("http://127.0.0.1:1", "token");
  t.after(() => client.close());
  await assert.rejects(client.agents(), { reason: "UNAVAILABLE" });
});
