/**
 * What the tests run against: a real coordinator and the Python example agent as
 * processes, and a proxy whose connections can be cut. Nothing is asserted here.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import type { Spec } from "../src/index.js";

const DEADLINE_MS = 30_000;

function setting(name: string): string {
  const value = process.env[name];
  if (!value) {
    throw new Error(`${name} is not set; run scripts/clients`);
  }
  return value;
}

/** Looks until there is something. Fails loudly at the deadline. */
export async function waitFor<Found>(
  what: string,
  look: () => Found | undefined | Promise<Found | undefined>,
): Promise<Found> {
  const deadline = performance.now() + DEADLINE_MS;
  for (;;) {
    const found = await look();
    if (found !== undefined) {
      return found;
    }
    if (performance.now() > deadline) {
      throw new Error(`no ${what} after ${DEADLINE_MS} ms`);
    }
    await sleep(20);
  }
}

/** Ends a process politely, or else not, and says how it ended. */
async function end(child: ChildProcess): Promise<number | null> {
  if (child.exitCode === null && child.signalCode === null) {
    const exit = once(child, "exit");
    child.kill("SIGTERM");
    const impatience = setTimeout(() => child.kill("SIGKILL"), DEADLINE_MS);
    await exit;
    clearTimeout(impatience);
  }
  return child.exitCode;
}

/** A `kage coordinator` with a data directory of its own. */
export class Coordinator {
  private constructor(
    private readonly child: ChildProcess,
    private readonly folder: string,
    readonly url: string,
    readonly tokenFile: string,
    readonly token: string,
    readonly caFile: string | undefined,
  ) {}

  static async start({ tls = false } = {}): Promise<Coordinator> {
    const folder = mkdtempSync(join(tmpdir(), "kage-typescript-"));
    const data = join(folder, "data");
    const listen = ["--listen", "127.0.0.1:0", ...(tls ? ["--tls"] : [])];
    const child = spawn(setting("KAGE_PROGRAM"), ["coordinator", "--data-dir", data, "--token-agents", "run,verify", ...listen], {
      env: { ...process.env, KAGE_LOG: "warn" },
      stdio: ["ignore", "inherit", "inherit"],
    });
    const endpoint = join(data, "endpoint");
    const url = await waitFor("endpoint", () => (existsSync(endpoint) ? readFileSync(endpoint, "utf8").trim() : undefined));
    const tokenFile = join(data, "token");
    const caFile = tls ? join(data, "tls", "ca.pem") : undefined;
    return new Coordinator(child, folder, url, tokenFile, readFileSync(tokenFile, "utf8").trim(), caFile);
  }

  async close(): Promise<void> {
    await end(this.child);
    rmSync(this.folder, { recursive: true });
  }
}

/** The Python example agent as a process. */
export class Agent {
  private readonly child: ChildProcess;

  constructor(coordinator: Coordinator) {
    this.child = spawn(
      setting("KAGE_PYTHON"),
      [
        setting("KAGE_PYTHON_AGENT"),
        ...["--url", coordinator.url, "--token-file", coordinator.tokenFile, "--name", "py"],
        ...(coordinator.caFile === undefined ? [] : ["--ca-file", coordinator.caFile]),
      ],
      { stdio: ["ignore", "inherit", "inherit"] },
    );
  }

  /** Asks it to drain, and says how it ended. */
  close(): Promise<number | null> {
    return end(this.child);
  }
}

/** Passes connections on to a coordinator until they are cut. */
export class Proxy {
  connections = 0;
  private readonly open = new Set<Socket>();

  private constructor(
    private readonly server: Server,
    to: URL,
  ) {
    server.on("connection", (client) => {
      this.connections += 1;
      const upstream = connect(Number(to.port), to.hostname);
      for (const [source, sink] of [
        [client, upstream],
        [upstream, client],
      ] as const) {
        this.open.add(source);
        source.pipe(sink);
        // A cut is no error of the test.
        source.on("error", () => sink.destroy());
        source.on("close", () => {
          this.open.delete(source);
          sink.destroy();
        });
      }
    });
  }

  static async start(url: string): Promise<Proxy> {
    const server = createServer();
    const proxy = new Proxy(server, new URL(url));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Cuts every connection that is open now. */
  cut(): void {
    for (const socket of this.open) {
      socket.resetAndDestroy();
    }
  }

  close(): void {
    this.server.close();
    this.cut();
  }
}

/** A task for the example agent, which is tried once. */
export function shellTask(command: string): Spec {
  return {
    prompt: command,
    assignments: [{ name: "one", adapter: "py-shell" }],
    policy: { maxAttempts: 1 },
  };
}
