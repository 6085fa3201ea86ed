#!/usr/bin/env node
// Starts the program of the package for this kind of machine, in place of this one as far as Node can: the same
// streams, signals, and exit code.
'use strict';
const { spawn } = require('node:child_process');
const { constants } = require('node:os');

const kind = `${process.platform}-${process.arch}`;
let program;
try {
    program = require.resolve(`kage-bunshin-${kind}/bin/kage`);
} catch {
    console.error(
        `kage: there is no program for ${kind}. npm leaves it out with --omit=optional: install again without it. ` +
            'On other machines: cargo install --locked --path cli, in a clone of the repository.',
    );
    process.exit(1);
}

const child = spawn(program, process.argv.slice(2), { stdio: 'inherit' });
// A terminal sends Ctrl-C to both; the others reach only this process. The program decides what they mean.
process.on('SIGINT', () => {});
for (const signal of ['SIGTERM', 'SIGHUP']) {
    process.on(signal, () => child.kill(signal));
}
child.on('error', error => {
    console.error(`kage: ${program} cannot be started: ${error.message}`);
    process.exit(1);
});
child.on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
