"""An OpenAI-compatible server on this machine, for what asks a judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint(ThreadingHTTPServer):
    """Answers every request with ``reply(request)``.

    Attributes:
        requests: bodies so far.
        keys: their Authorization headers.
        failures: statuses of the next requests.
        limit: answers that are given before status 401.
        body: in place of a well-formed answer.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []
        self.limit = 10**9
        self.body: bytes | None = None
        self.lock = threading.Lock()

    @property
    def words(self) -> list[str]:
        """Return the words that make a command ask this server."""
        return [f"endpoint.base_url=http://127.0.0.1:{self.server_port}/v1", "endpoint.model=m", "endpoint.pause=0"]


@contextmanager
def running(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve until the block ends."""
    thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            status = server.failures.pop(0) if server.failures else 200
            server.limit -= status == 200
            status = 401 if server.limit < 0 else status
        assert self.path == "/v1/chat/completions"
        body = json.dumps({"choices": [{"message": {"content": server.reply(request)}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(server.body or body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
