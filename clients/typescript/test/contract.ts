/**
 * The contract of the clients (clients/contract): from Node, and what a page does of it over gRPC-Web.
 * `clients/contract/run.py` runs it; by itself it has no coordinator.
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { connect as dial } from "node:net";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { fromJson, type JsonObject } from "@bufbuild/protobuf";

import * as browser from "../src/browser.js";
import { TaskSpecSchema } from "../src/gen/kage/v1/task_pb.js";
import { type Client, connect, type Item, KageError, OutputStream, type Spec, TaskState } from "../src/index.js";

interface Expected {
  readonly name: string;
  readonly get?: string;
  readonly submit?: JsonObject;
  readonly reason: string;
  readonly fields?: readonly string[];
}

interface Contract {
  readonly lists: readonly string[];
  readonly items: number;
  readonly errors: readonly Expected[];
  readonly task: JsonObject;
  readonly command: string;
  readonly output: string;
  readonly result: { readonly file: string; readonly content: string };
  readonly url: string;
  readonly token: string;
  readonly cutting: string;
  readonly cut: number;
  readonly names: Readonly<Record<string, readonly string[]>>;
  readonly project: string;
  readonly folder: string;
}

const contract = JSON.parse(readFileSync(process.env["KAGE_CONTRACT"]!, "utf8")) as Contract;
const node = connect(contract.url, contract.token);
const page = browser.connect(contract.url, contract.token);

test.after(() => {
  node.close();
});

function spec(fields: JsonObject): Spec {
  return fromJson(TaskSpecSchema, fields);
}

async function all<Value>(values: AsyncIterable<Value>): Promise<Value[]> {
  const items: Value[] = [];
  for await (const item of values) {
    items.push(item);
  }
  return items;
}

/** Cuts the connections of the proxy, then opens the gate. */
async function cut(gate: string): Promise<void> {
  const asked = dial(contract.cut, "127.0.0.1");
  // It is closed by the other side when the cut begins.
  asked.resume();
  await once(asked, "close");
  writeFileSync(gate, "");
}

async function checkLists(client: Client): Promise<void> {
  const { project } = contract;
  const lists: Record<string, () => Promise<string[]>> = {
    tasks: async () => (await all(client.list(project))).map(({ id }) => id),
    agents: async () => (await client.agents()).map(({ name }) => name),
    tokens: async () => (await all(client.tokens())).map(({ name }) => name),
    projects: async () => (await all(client.projects())).map(({ name }) => name),
    repositories: async () => (await all(client.repositories(project))).map(({ name }) => name),
  };
  assert.deepEqual(Object.keys(lists).sort(), [...contract.lists].sort());
  for (const [name, list] of Object.entries(lists)) {
    const found = await list();
    const expected = new Set(contract.names[name]);
    assert.deepEqual(found.filter((one) => expected.has(one)).sort(), [...expected].sort(), name);
    assert.ok(found.length >= contract.items, name);
  }
}

async function checkErrors(client: Client): Promise<void> {
  for (const { name, get, submit, reason, fields = [] } of contract.errors) {
    const call = (): Promise<unknown> => (get === undefined ? client.submit(spec(submit ?? {})) : client.get(get));
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof KageError, name);
      assert.equal(error.reason, reason, name);
      const wrong = error.violations.map(({ field }) => field);
      assert.deepEqual(fields.filter((field) => !wrong.includes(field)), [], name);
      return true;
    });
  }
}

/** Runs the contract's task, and resolves to its id and the best session's name. */
async function checkTask(client: Client, cutting: Client, base: string, gate: string): Promise<[string, string]> {
  const requestId = `contract ${gate}`.slice(-128);
  const command = contract.command.replace("GATE", gate);
  const repository = { name: "contract", baseCommit: base };
  const asked = spec({ ...contract.task, prompt: command, repository });
  const made = await client.submit(asked, { requestId });
  assert.equal((await client.submit(asked, { requestId })).id, made.id);
  const other = spec({ ...contract.task, prompt: `${command} `, repository });
  await assert.rejects(client.submit(other, { requestId }), (error) => error instanceof KageError && error.reason === "CONFLICT");

  const items: Item[] = [];
  for await (const item of cutting.watch(made.id, { output: [OutputStream.STDOUT] })) {
    items.push(item);
    if (item.case === "output" && !existsSync(gate)) {
      await cut(gate);
    }
  }
  let output = Buffer.alloc(0);
  for (const item of items) {
    if (item.case === "output") {
      assert.equal(item.value.offset, BigInt(output.length));
      output = Buffer.concat([output, item.value.data]);
    }
  }
  assert.equal(output.toString(), contract.output);
  assert.equal(items.filter((item) => item.case === "task").at(-1)?.value.state, TaskState.SUCCEEDED);
  const report = await client.report(made.id);
  assert.equal(report.best?.session, "one");
  return [made.id, "one"];
}

test("lists, from Node", () => checkLists(node));
test("lists, from a page", () => checkLists(page));
test("errors, from Node", () => checkErrors(node));
test("errors, from a page", () => checkErrors(page));

test("request ids and a task, from Node", async (t) => {
  const cutting = connect(contract.cutting, contract.token);
  t.after(() => cutting.close());
  const base = await node.push(contract.folder, "contract");
  const [task, session] = await checkTask(node, cutting, base, join(contract.folder, "node-gate"));
  const commit = await node.fetch(contract.folder, task, session);
  const { file, content } = contract.result;
  assert.equal(execFileSync("git", ["-C", contract.folder, "show", `${commit}:${file}`], { encoding: "utf8" }), content);
});

test("request ids and a task, from a page", async () => {
  const cutting = browser.connect(contract.cutting, contract.token);
  const base = await node.push(contract.folder, "contract");
  const [task, session] = await checkTask(page, cutting, base, join(contract.folder, "page-gate"));
  const files = await all(page.diff(task, { session }));
  assert.deepEqual(
    files.map(({ file }) => file.displayPath),
    [contract.result.file],
  );
  assert.match(new TextDecoder().decode(files[0]?.patch), /^\+made$/m);
});

test("the examples do what they say", () => {
  const example = (name: string, ...words: string[]): string => {
    const file = fileURLToPath(new URL(`../examples/${name}.js`, import.meta.url));
    return execFileSync(process.execPath, [file, contract.url, token, ...words], { cwd: contract.folder, encoding: "utf8" });
  };
  const token = join(contract.folder, "token");
  writeFileSync(token, contract.token);
  const prompt = contract.command.replace("GATE", token);
  const told = example("run", "shell", prompt);
  assert.ok(told.startsWith(contract.output), told);
  const commit = told.trim().split("\n").at(-1);
  const { file, content } = contract.result;
  assert.equal(execFileSync("git", ["-C", contract.folder, "show", `${commit}:${file}`], { encoding: "utf8" }), content);
  assert.match(example("board"), /SUCCEEDED echo begun/);
});

test("the entry for pages needs nothing of Node", () => {
  const waiting = [fileURLToPath(new URL("../src/browser.js", import.meta.url))];
  const seen = new Set<string>();
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    seen.add(file);
    for (const [, from] of readFileSync(file, "utf8").matchAll(/(?:from|import) "([^"]+)"/g)) {
      assert.doesNotMatch(from!, /^node:|connect-node/, file);
      const path = join(dirname(file), from!);
      if (from!.startsWith(".") && !seen.has(path)) {
        waiting.push(path);
      }
    }
  }
  assert.ok(seen.size > 5);
});
