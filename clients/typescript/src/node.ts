/**
 * The client in Node: a connection over HTTP/2, and git for what goes between a repository of one's
 * own and the coordinator. Nothing else in the package starts a program or reads a file.
 */

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { promisify } from "node:util";

import type { Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { Client } from "./client.js";
import { KageError } from "./errors.js";
import { TaskView } from "./gen/kage/v1/task_pb.js";

/** How long sending or fetching commits may take. */
const GIT_TIMEOUT_MS = 600_000;

/** What {@link connect} may be told. */
export interface ConnectOptions {
  /** File with the certificate of the coordinator's CA, for https; without it, what Node trusts. */
  readonly caFile?: string;
}

/**
 * A client of the coordinator at this address: `https://HOST:7443` with the file of its CA's
 * certificate, or `http://127.0.0.1:7443` on the same machine.
 *
 * On its own machine, address and token are in the files `endpoint` and `token` of the
 * coordinator's data directory, and the CA is in `tls/ca.pem`. Nothing is sent before the
 * first call, so a wrong address or token shows there, as UNAVAILABLE or UNAUTHENTICATED.
 */
export function connect(url: string, token: string, { caFile }: ConnectOptions = {}): NodeClient {
  const { protocol } = new URL(url);
  // A URL drops the port that its scheme has by default, so the text is asked.
  if (!/^https?:\/\/[^/?#]+:\d+\/?$/.test(url)) {
    throw new TypeError(`${url} is not the address of a coordinator, such as https://coordinator-host:7443`);
  }
  if (protocol === "http:" && caFile !== undefined) {
    throw new TypeError(`${url} is not encrypted, so no CA is needed; did you mean https?`);
  }
  const authorization = `Bearer ${token.trim()}`;
  const trust = caFile === undefined ? undefined : { ca: readFileSync(caFile) };
  // Pings notice a half-open connection while a watch is silent.
  const sessionManager = new Http2SessionManager(url, { pingIntervalMs: 20_000, pingTimeoutMs: 10_000 }, trust);
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", authorization);
        return next(request);
      },
    ],
  });
  const settings: Record<string, string> = {
    // For this address alone: git calls other servers too, of submodules for instance.
    [`http.${url.replace(/\/$/, "")}/.extraHeader`]: `Authorization: ${authorization}`,
    "http.followRedirects": "false",
    "fetch.recurseSubmodules": "false",
    "push.recurseSubmodules": "no",
    "submodule.recurse": "false",
  };
  if (caFile !== undefined) {
    settings["http.sslCAInfo"] = resolve(caFile);
  }
  return new NodeClient(transport, () => sessionManager.abort(), url.replace(/\/$/, ""), settings);
}

/** A connection to a coordinator, with its repositories. {@link connect} makes it. */
export class NodeClient extends Client {
  readonly #url: string;
  readonly #settings: Readonly<Record<string, string>>;

  constructor(transport: Transport, close: () => void, url: string, gitSettings: Readonly<Record<string, string>>) {
    super(transport, close);
    this.#url = url;
    this.#settings = gitSettings;
  }

  /**
   * Sends a commit of the repository in `folder` to the coordinator's repository of this name, as the
   * base of tasks. Resolves to its full id, for `Repository.baseCommit`.
   */
  async push(folder: string, name: string, commit = "HEAD", project = ""): Promise<string> {
    const full = (await this.#git(folder, "rev-parse", "--verify", "--end-of-options", `${commit}^{commit}`)).trim();
    await this.#git(folder, "push", "--quiet", "--no-verify", this.#address(name, project), `${full}:refs/kage/bases/${full}`);
    return full;
  }

  /**
   * Fetches the result of a session, by its name, into the repository in `folder`. Resolves to the commit,
   * which `refs/kage/results/SESSION_ID` keeps there.
   */
  async fetch(folder: string, taskId: string, session: string): Promise<string> {
    const task = await this.get(taskId, TaskView.BASIC);
    const id = task.sessions.find(({ name }) => name === session)?.id;
    if (id === undefined) {
      throw new KageError("NOT_FOUND", `session ${session} of task ${task.id} was not found`);
    }
    const ref = `refs/kage/results/${id}`;
    const address = this.#address(task.spec?.repository?.name ?? "", task.spec?.project ?? "");
    await this.#git(folder, "fetch", "--quiet", "--no-tags", address, `+${ref}:${ref}`);
    return (await this.#git(folder, "rev-parse", "--verify", ref)).trim();
  }

  #address(name: string, project: string): string {
    return `${this.#url}/git/${encodeURIComponent(project || "default")}/${encodeURIComponent(name)}`;
  }

  async #git(folder: string, ...command: string[]): Promise<string> {
    try {
      const env = { ...process.env, ...environment(this.#settings) };
      const options = { env, timeout: GIT_TIMEOUT_MS, maxBuffer: 16 << 20 };
      return (await promisify(execFile)("git", ["-C", folder, ...command], options)).stdout;
    } catch (cause) {
      const { killed, stderr, message } = cause as { killed?: boolean; stderr?: string; message: string };
      if (killed) {
        throw new KageError("UNAVAILABLE", `git ${command[0]} took more than ${GIT_TIMEOUT_MS / 1000} s`, [], undefined, { cause });
      }
      throw new KageError("FAILED_PRECONDITION", `git ${command[0]}: ${stderr?.trim() || message}`, [], undefined, { cause });
    }
  }
}

/**
 * Settings of git for one command, behind those that the environment has already. Not arguments:
 * anybody can read a command line.
 */
function environment(settings: Readonly<Record<string, string>>): Record<string, string> {
  const first = Number(process.env["GIT_CONFIG_COUNT"] ?? 0);
  const entries = Object.entries(settings);
  const pairs = entries.flatMap(([key, value], at) => [
    [`GIT_CONFIG_KEY_${first + at}`, key],
    [`GIT_CONFIG_VALUE_${first + at}`, value],
  ]);
  return { GIT_CONFIG_COUNT: String(first + entries.length), GIT_TERMINAL_PROMPT: "0", ...Object.fromEntries(pairs) };
}
