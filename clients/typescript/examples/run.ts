/**
 * Runs a task on a coordinator and brings the best result into this repository.
 *
 *     cd REPOSITORY
 *     node run.js URL TOKEN_FILE ADAPTER PROMPT
 *
 * Prints what the session prints, then the commit of the result.
 */

import { readFileSync } from "node:fs";

import { connect, KageError, OutputStream } from "../src/index.js";

const [url, tokenFile, adapter, prompt] = process.argv.slice(2);
if (url === undefined || tokenFile === undefined || adapter === undefined || prompt === undefined) {
  throw new Error("usage: node run.js URL TOKEN_FILE ADAPTER PROMPT");
}

const client = connect(url, readFileSync(tokenFile, "utf8"));
try {
  const baseCommit = await client.push(".", "example");
  const task = await client.submit({
    prompt,
    repository: { name: "example", baseCommit },
    assignments: [{ name: "one", adapter }],
  });
  // `watch.cursor`, kept in a file, would resume here after a crash of this program.
  for await (const item of client.watch(task.id, { output: [OutputStream.STDOUT] })) {
    if (item.case === "output") {
      process.stdout.write(item.value.data);
    }
  }
  const { best } = await client.report(task.id);
  if (!best?.session) {
    throw new Error(`no result: ${best?.message}`);
  }
  console.log(await client.fetch(".", task.id, best.session));
} catch (error) {
  if (!(error instanceof KageError)) {
    throw error;
  }
  const wrong = error.violations.map(({ field, problem }) => `\n  ${field}: ${problem}`).join("");
  console.error(`${error.reason}: ${error.message}${wrong}`);
  process.exitCode = 1;
} finally {
  client.close();
}
