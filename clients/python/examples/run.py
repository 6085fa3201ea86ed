"""Runs a task on a coordinator and brings the best result into this repository.

    cd REPOSITORY
    python run.py --url http://127.0.0.1:7443 --token-file TOKEN_FILE ADAPTER PROMPT

Prints what the session prints, then the commit of the result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import kage


def run(client: kage.Client, adapter: str, prompt: str) -> str:
    """The commit of the best result."""
    base = client.push(".", name="example")
    task = client.submit(
        kage.TaskSpec(
            prompt=prompt,
            repository=kage.Repository(name="example", base_commit=base),
            assignments=[kage.Assignment(name="one", adapter=adapter)],
        )
    )
    # `watch.cursor`, kept in a file, would resume here after a crash of this program.
    for item in client.watch(task.id, output=[kage.OUTPUT_STREAM_STDOUT]):
        if isinstance(item, kage.OutputChunk):
            sys.stdout.write(item.data.decode(errors="replace"))
    best = client.report(task.id).best
    if not best.session:
        sys.exit(f"no result: {best.message}")
    return client.fetch(".", task.id, best.session)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--token-file", required=True, type=Path)
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("adapter")
    parser.add_argument("prompt")
    asked = parser.parse_args()
    with kage.connect(asked.url, asked.token_file.read_text(), asked.ca_file) as client:
        try:
            print(run(client, asked.adapter, asked.prompt))
        except kage.KageError as error:
            wrong = "".join(f"\n  {one.field}: {one.problem}" for one in error.violations)
            sys.exit(f"{error.reason}: {error}{wrong}")


if __name__ == "__main__":
    main()
