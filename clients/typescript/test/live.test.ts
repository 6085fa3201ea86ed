/** The client and the Python example agent against a real coordinator. */

import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test, type TestContext } from "node:test";

import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { AccessService, Role } from "../src/gen/kage/v1/access_service_pb.js";
import { AgentService } from "../src/gen/kage/v1/agent_service_pb.js";
import {
  type Client,
  connect,
  type Item,
  KageError,
  OutputStream,
  type Spec,
  type Task,
  TaskOrder,
  TaskState,
  TaskView,
} from "../src/index.js";
import { Agent, Coordinator, Proxy, shellTask, waitFor } from "./cluster.js";

const OUTPUT = [OutputStream.STDOUT, OutputStream.STDERR] as const;

let coordinator: Coordinator;
let agent: Agent;
let client: Client;

before(async () => {
  coordinator = await Coordinator.start();
  agent = new Agent(coordinator);
  client = connect(coordinator.url, coordinator.token);
  await waitFor("agent", async () => (await client.agents())[0]);
});

after(async () => {
  client.close();
  assert.equal(await agent.close(), 0, "the agent's exit code");
  await coordinator.close();
});

/** A failure with this reason, for `assert.rejects`. */
function because(reason: string): (error: unknown) => boolean {
  return (error) => error instanceof KageError && error.reason === reason;
}

/** Submits a task that does not outlive the test. */
async function submit(t: TestContext, through: Client, spec: Spec): Promise<Task> {
  const task = await through.submit(spec);
  t.after(() => client.cancel(task.id));
  return task;
}

async function all<Value>(values: AsyncIterable<Value>): Promise<Value[]> {
  const items: Value[] = [];
  for await (const item of values) {
    items.push(item);
  }
  return items;
}

/** Checks that nothing was skipped or repeated, and returns the output by stream. */
function checkWhole(items: readonly Item[]): Record<number, string> {
  const events = items.flatMap((item) => (item.case === "event" && item.value.event ? [item.value.event] : []));
  assert.deepEqual(
    events.map((event) => event.seq),
    events.map((_, index) => BigInt(index + 1)),
  );
  assert.deepEqual(
    events.map((event) => event.body.case),
    ["phaseChanged", "activity", "finished"],
  );
  const output = new Map<OutputStream, Buffer>(OUTPUT.map((stream) => [stream, Buffer.alloc(0)]));
  for (const item of items) {
    if (item.case === "output") {
      const { stream, offset, data } = item.value;
      const sofar = output.get(stream) ?? Buffer.alloc(0);
      assert.equal(offset, BigInt(sofar.length));
      output.set(stream, Buffer.concat([sofar, data]));
    }
  }
  return Object.fromEntries([...output].map(([stream, bytes]) => [stream, bytes.toString()]));
}

test("the agent is in the fleet", async () => {
  const agents = await client.agents();
  assert.deepEqual(
    agents.map(({ name, adapters }) => [name, adapters.map((adapter) => adapter.name)]),
    [["py", ["py-shell"]]],
  );
});

test("a task is watched to its end over a broken connection", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "kage-gate-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const gate = join(folder, "gate");
  const proxy = await Proxy.start(coordinator.url);
  t.after(() => proxy.close());
  const proxied = connect(proxy.url, coordinator.token);
  t.after(() => proxied.close());

  const spec = shellTask(`echo one; while [ ! -e ${gate} ]; do sleep 0.02; done; echo two >&2; seq 1 20000`);
  const task = await submit(t, proxied, spec);
  const watch = proxied.watch(task.id, { output: OUTPUT });
  const items: Item[] = [];
  let before = 0;
  for await (const item of watch) {
    items.push(item);
    if (item.case === "output" && before === 0) {
      before = proxy.connections;
      proxy.cut();
      writeFileSync(gate, "");
    }
  }
  assert.ok(proxy.connections > before, "it connected again");
  const numbers = Array.from({ length: 20000 }, (_, index) => `${index + 1}\n`).join("");
  assert.deepEqual(checkWhole(items), {
    [OutputStream.STDOUT]: `one\n${numbers}`,
    [OutputStream.STDERR]: "two\n",
  });
  const last = items.filter((item) => item.case === "task").at(-1);
  assert.equal(last?.value.state, TaskState.SUCCEEDED);

  const report = await client.report(task.id);
  assert.equal(report.provisional, false);
  assert.deepEqual(
    report.rows.map(({ session }) => [session?.name, session?.agent]),
    [["one", "py"]],
  );
  assert.ok(report.best?.message);
  const whole = await client.get(task.id.slice(0, 12));
  assert.deepEqual([whole.id, whole.view, task.view], [task.id, TaskView.FULL, TaskView.BASIC]);
  const basic = await client.get(task.id, TaskView.BASIC);
  assert.equal(basic.spec?.prompt, "");
  assert.equal(Number(basic.promptSize), new TextEncoder().encode(whole.spec?.prompt).length);
  assert.ok((await client.server()).version);

  // The cursor of the last item is after everything, also for another process.
  const rest = await all(client.watch(task.id, { output: OUTPUT, cursor: watch.cursor }));
  assert.deepEqual(
    rest.map((item) => item.case),
    ["task"],
  );
});

test("a cancelled task leaves no process", async (t) => {
  const task = await submit(t, client, shellTask("echo $$; exec sleep 600"));
  let pid = 0;
  for await (const item of client.watch(task.id, { output: OUTPUT })) {
    if (item.case === "output") {
      pid = Number(Buffer.from(item.value.data).toString());
      await client.cancel(task.id);
    }
  }
  assert.equal((await client.get(task.id)).state, TaskState.CANCELLED);
  assert.ok(pid > 0);
  await waitFor("end of the command", () => (existsSync(`/proc/${pid}`) ? undefined : true));
  // To cancel twice changes nothing.
  await client.cancel(task.id);
});

test("a watch can be left or closed before its task ends", async (t) => {
  const task = await submit(t, client, shellTask("sleep 600"));
  for await (const item of client.watch(task.id)) {
    assert.equal(item.case, "task");
    break;
  }
  const watch = client.watch(task.id);
  for await (const item of watch) {
    if (item.case === "event") {
      watch.close();
    }
  }
  assert.equal((await client.get(task.id)).state, TaskState.RUNNING);
});

test("tasks are listed newest first", async (t) => {
  const made: string[] = [];
  // More than one page.
  for (let count = 0; count < 25; count += 1) {
    made.unshift((await submit(t, client, shellTask("true"))).id);
  }
  const listed: string[] = [];
  for await (const task of client.list()) {
    listed.push(task.id);
  }
  assert.deepEqual(listed.slice(0, made.length), made);
  const none = await all(client.list("", { filter: { states: [TaskState.FAILED], labels: { no: "such" } } }));
  assert.deepEqual(none, []);
  const oldest = await all(client.list("", { order: TaskOrder.OLDEST_FIRST }));
  assert.deepEqual(
    oldest.map((task) => task.id),
    [...listed].reverse(),
  );
});

test("agents are listed beyond the first page, and a revoked token ends a watch as denied", async (t) => {
  const here = await Coordinator.start();
  t.after(() => here.close());
  const owner = connect(here.url, here.token);
  t.after(() => owner.close());
  const { url: baseUrl, token } = here;
  const transport = createGrpcTransport({
    baseUrl,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  // More than one page of agents, which come and go.
  const agents = createClient(AgentService, transport);
  const names = Array.from({ length: 105 }, (_, index) => `a${String(index).padStart(3, "0")}`);
  for (const [index, name] of names.entries()) {
    const id = (index + 1).toString(16).padStart(32, "0");
    const leaving = new AbortController();
    const hello = { agentId: id, bootId: id, protocolMin: 1, protocolMax: 1, name, slots: 1 };
    const says = async function* () {
      yield { message: { case: "hello" as const, value: hello } };
      // It stays until it has been let in.
      await new Promise((resolve) => leaving.signal.addEventListener("abort", resolve));
    };
    for await (const { message } of agents.connect(says())) {
      assert.equal(message.case, "welcome");
      leaving.abort();
      break;
    }
  }
  assert.deepEqual((await owner.agents()).map(({ name }) => name), names);

  const access = createClient(AccessService, transport);
  const made = await access.createToken({ requestId: "make", role: Role.VIEW, name: "wall" });
  const task = await owner.submit(shellTask("true"), { waitForAgent: true });
  const viewer = connect(here.url, made.bearer);
  t.after(() => viewer.close());
  const watch = viewer.watch(task.id);
  const watching = async (): Promise<void> => {
    for await (const item of watch) {
      assert.equal(item.case, "task");
      await access.revokeToken({ requestId: "revoke", tokenId: made.token!.id });
    }
  };
  await assert.rejects(watching(), (error) => because("PERMISSION_DENIED")(error) && /revoked/.test(String(error)));
});

test("a request id names one task", async () => {
  const options = { requestId: "the-same" };
  const first = await client.submit(shellTask("true"), options);
  assert.equal((await client.submit(shellTask("true"), options)).id, first.id);
  await assert.rejects(client.submit(shellTask("false"), options), because("CONFLICT"));
});

test("errors carry their facts", async (t) => {
  const stranger = connect(coordinator.url, "0".repeat(64));
  t.after(() => stranger.close());
  await assert.rejects(stranger.submit(shellTask("true")), because("UNAUTHENTICATED"));
  await assert.rejects(all(stranger.watch("0".repeat(32))), because("UNAUTHENTICATED"));
  await assert.rejects(client.get("0".repeat(32)), because("NOT_FOUND"));
  const wrong = { assignments: [{ name: "A b", adapter: "x" }] };
  await assert.rejects(client.submit(wrong), (error) => {
    assert.ok(because("INVALID_ARGUMENT")(error));
    return (error as KageError).violations.some(({ field }) => field.includes("name"));
  });
});

test("over TLS a task is run and watched, and another CA is not trusted", async (t) => {
  const [here, other] = await Promise.all([Coordinator.start({ tls: true }), Coordinator.start({ tls: true })]);
  t.after(() => Promise.all([here.close(), other.close()]));
  assert.ok(here.url.startsWith("https://"));
  const worker = new Agent(here);
  t.after(() => worker.close());
  const secure = connect(here.url, here.token, { caFile: here.caFile! });
  t.after(() => secure.close());
  await waitFor("agent", async () => (await secure.agents())[0]);
  const task = await secure.submit(shellTask("echo hello"));
  const items = await all(secure.watch(task.id, { output: OUTPUT }));
  const output = items.flatMap((item) => (item.case === "output" ? [item.value.data] : []));
  assert.equal(Buffer.concat(output).toString(), "hello\n");

  for (const options of [{ caFile: other.caFile! }, {}]) {
    const wary = connect(here.url, here.token, options);
    t.after(() => wary.close());
    // Nothing was sent, and trying again would change nothing.
    await assert.rejects(wary.agents(), (error) => error instanceof KageError && /self.signed|certificate/i.test(error.message));
  }
});
