// A client of the Model Context Protocol that does what its standard input says: a line with `name` and
// `arguments` calls a tool, and a line comes back with the `result` or an `error`, and with the notifications
// of `progress`. The first line is what the server says of itself. The official SDK checks every result against
// the schema that the server announced.
//
//   node client.cjs NODE_MODULES PROGRAM ARGUMENT...
const { createRequire } = require('node:module');
const { createInterface } = require('node:readline');

const [modules, command, ...args] = process.argv.slice(2);
const installed = createRequire(`${modules}/client.cjs`);
const { Client } = installed('@modelcontextprotocol/client');
const { StdioClientTransport } = installed('@modelcontextprotocol/client/stdio');

const print = value => console.log(JSON.stringify(value));

async function main() {
    const client = new Client({ name: 'kage-tests', version: '1.0.0' });
    await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: 'inherit' }));
    const { tools } = await client.listTools();
    print({ server: client.getServerVersion(), instructions: client.getInstructions(), tools });
    for await (const line of createInterface({ input: process.stdin })) {
        const progress = [];
        try {
            const result = await client.callTool(JSON.parse(line), { onprogress: told => progress.push(told) });
            print({ result, progress });
        } catch (error) {
            print({ error: String(error), progress });
        }
    }
    await client.close();
}

main().catch(error => {
    console.error(error);
    process.exitCode = 1;
});
