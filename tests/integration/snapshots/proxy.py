"""A proxy in front of an S3 service that does what networks and services do: errors, cut bodies, silence."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit


class FaultProxy:
    """Listens on a free port while the `with` block lasts. `faults` counts what was done to requests."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.fail_with: int | None = None
        """Status to answer every request with."""
        self.fail_times = 1 << 30
        """How many requests fail, then all is well again."""
        self.cut_bodies = 0
        """How many further answers to GET are cut in the middle of their body."""
        self.hang_puts = threading.Event()
        """While set, PUT requests are read and not answered."""
        self.conditions: Literal["honoured", "refused", "ignored"] = "honoured"
        """What becomes of a PUT that shall only create."""
        self.held = threading.Event()
        """Set once a PUT is held so."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

            def log_message(self, *_: object) -> None:
                """Say nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.hang_puts.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """One request, with a fault or without."""
        body = self._body(request)
        self.requests[request.command] += 1
        if self.fail_with is not None and self.fail_times > 0:
            self.fail_times -= 1
            self.faults[str(self.fail_with)] += 1
            request.send_response(self.fail_with)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.command == "PUT" and "If-None-Match" in request.headers and self.conditions != "honoured":
            self.faults[self.conditions] += 1
            if self.conditions == "refused":
                request.send_response(501)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            del request.headers["If-None-Match"]
        if request.command == "PUT" and self.hang_puts.is_set():
            self.faults["held"] += 1
            self.held.set()
            while self.hang_puts.is_set():
                threading.Event().wait(0.02)
            request.close_connection = True
            return
        self._forward(request, body)

    @staticmethod
    def _body(request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Expect") == "100-continue":
            request.send_response_only(100)
            request.end_headers()
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            # The Host header stays as the client signed it.
            headers = {key: value for key, value in request.headers.items() if key.lower() != "expect"}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            request.send_response_only(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    request.send_header(key, value)
            length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(data))
            request.send_header("Content-Length", length or "0")
            request.end_headers()
            if request.command == "GET" and self.cut_bodies > 0 and len(data) > 1:
                self.cut_bodies -= 1
                self.faults["cut"] += 1
                data = data[: len(data) // 2]
                request.close_connection = True
            request.wfile.write(data)
        except OSError:
            request.close_connection = True
        finally:
            connection.close()
