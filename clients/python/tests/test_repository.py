"""What git is told for one coordinator stays with that coordinator."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer

from kage.repository import Remote


class Server(HTTPServer):
    """Answers nothing, and remembers the tokens that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("authorization"))
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


class TokenTest(unittest.TestCase):
    def test_a_token_goes_to_its_coordinator_and_to_no_other_server(self) -> None:
        own, other = Server(), Server()
        self.addCleanup(own.server_close)
        self.addCleanup(own.shutdown)
        self.addCleanup(other.server_close)
        self.addCleanup(other.shutdown)
        remote = Remote(own.url, "secret", None)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["git", "init", "--quiet", folder], check=True)
            for server in (own, other):
                subprocess.run(
                    ["git", "-C", folder, "fetch", "--quiet", f"{server.url}/git/default/x"],
                    env={**os.environ, **remote._environment},
                    capture_output=True,
                )
        self.assertEqual(own.tokens[0], "Bearer secret")
        self.assertTrue(other.tokens)
        self.assertNotIn("Bearer secret", other.tokens)


if __name__ == "__main__":
    unittest.main()
