"""Commits between a repository of one's own and the coordinator: the base of a task there, its
result back. It starts `git`, which has to be installed; nothing else in the package does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from kage.errors import KageError

#: Seconds that sending or fetching commits may take.
GIT_TIMEOUT = 600.0


class Remote:
    """The repositories of a coordinator, as git reaches them."""

    def __init__(self, url: str, token: str, ca_file: str | os.PathLike[str] | None) -> None:
        self._url = url.rstrip("/")
        # By the environment: anybody can read a command line.
        settings = {
            # For this address alone: git calls other servers too, of submodules for instance.
            f"http.{self._url}/.extraHeader": f"Authorization: Bearer {token.strip()}",
            "http.followRedirects": "false",
            "fetch.recurseSubmodules": "false",
            "push.recurseSubmodules": "no",
            "submodule.recurse": "false",
        }
        if ca_file is not None:
            settings["http.sslCAInfo"] = str(Path(ca_file).resolve())
        self._environment = _environment(settings)

    def push(self, folder: str | os.PathLike[str], name: str, commit: str, project: str) -> str:
        """Sends a commit of the repository in `folder` as a base, and returns its full id."""
        full = self._git(folder, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").strip()
        self._git(folder, "push", "--quiet", "--no-verify", self._address(name, project), f"{full}:refs/kage/bases/{full}")
        return full

    def fetch(self, folder: str | os.PathLike[str], name: str, session_id: str, project: str) -> str:
        """Fetches the result of a session into the repository in `folder`, as
        `refs/kage/results/SESSION_ID`, and returns the commit."""
        ref = f"refs/kage/results/{session_id}"
        self._git(folder, "fetch", "--quiet", "--no-tags", self._address(name, project), f"+{ref}:{ref}")
        return self._git(folder, "rev-parse", "--verify", ref).strip()

    def _address(self, name: str, project: str) -> str:
        return f"{self._url}/git/{quote(project or 'default', safe='')}/{quote(name, safe='')}"

    def _git(self, folder: str | os.PathLike[str], *arguments: str) -> str:
        command = ["git", "-C", os.fspath(folder), *arguments]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=GIT_TIMEOUT,
            )
        except FileNotFoundError as error:
            raise KageError("FAILED_PRECONDITION", f"git cannot be started: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise KageError("UNAVAILABLE", f"git {arguments[0]} took more than {GIT_TIMEOUT:.0f} s") from error
        if done.returncode != 0:
            raise KageError("FAILED_PRECONDITION", f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings of git for one command, behind those that the environment has already."""
    first = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    environment = {"GIT_CONFIG_COUNT": str(first + len(settings)), "GIT_TERMINAL_PROMPT": "0"}
    for at, (key, value) in enumerate(settings.items(), first):
        environment[f"GIT_CONFIG_KEY_{at}"] = key
        environment[f"GIT_CONFIG_VALUE_{at}"] = value
    return environment
