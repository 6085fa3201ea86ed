/**
 * A board of tasks, in a page or in Node: each task as it is and as it changes.
 *
 *     node board.js URL TOKEN_FILE
 *
 * `board` is all that a page needs, with `connect` of the entry for browsers.
 */

import { readFileSync } from "node:fs";
import { argv } from "node:process";

import { type Client, connect, type Task, TaskState } from "../src/browser.js";

/** Calls `show` with all tasks whenever they changed, the oldest first; it ends when `show` says true. */
export async function board(client: Client, show: (tasks: readonly Task[]) => boolean): Promise<void> {
  const tasks = new Map<string, Task>();
  let known = false;
  for await (const item of client.watchTasks()) {
    if (item.case === "reset") {
      tasks.clear();
    } else if (item.case === "task") {
      tasks.set(item.value.id, item.value);
    } else if (item.case === "gone") {
      tasks.delete(item.value.taskId);
    } else if (item.case === "caughtUp") {
      known = true;
    }
    if (known && show([...tasks.values()])) {
      return;
    }
  }
}

const [url, tokenFile] = argv.slice(2);
if (url === undefined || tokenFile === undefined) {
  throw new Error("usage: node board.js URL TOKEN_FILE");
}
await board(connect(url, readFileSync(tokenFile, "utf8")), (tasks) => {
  for (const { id, state, promptExcerpt } of tasks) {
    console.log(id.slice(0, 8), TaskState[state], promptExcerpt.split("\n")[0]);
  }
  // Until everything has ended.
  return tasks.every(({ endedAt }) => endedAt !== undefined);
});
