"""A real OpenAI-compatible HTTP server on this machine, with the faults that a test plants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-planted-0123456789-secret"


@dataclass(frozen=True)
class Fault:
    """What is answered instead of a completion."""

    status: int = 500
    body: str = '{"error": {"message": "planted"}}'
    headers: dict = field(default_factory=dict)


HANG = Fault(status=0)
"""Nothing is answered until the server is closed."""


class ChatServer:
    """Answers chat completions.

    Attributes:
        reply: Makes of a request's body the text of the answer.
        faults: Taken one by one, before anything is answered.
        always: A fault for every request, when there are no more faults.
        key: Wanted in the header; None: any or none.
        requests: Bodies of all requests, in the order of their coming.
        headers: Their headers.
        most_at_once: Most requests that were open at a time.
        goes_after: After so many requests it goes down, the last one answered.
        together: Requests that are answered only once all of them are there.
    """

    def __init__(self, reply: Callable[[dict], object] = lambda body: "1"):
        self.reply = reply
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.key: str | None = None
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.open = self.most_at_once = 0
        self.together: threading.Barrier | None = None
        self.goes_after: int | None = None
        self.closing = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    server.open += 1
                    server.most_at_once = max(server.most_at_once, server.open)
                    fault = server.faults.pop(0) if server.faults else server.always
                try:
                    if server.together is not None:
                        server.together.wait(10)
                    self._answer(body, fault)
                finally:
                    with server._lock:
                        server.open -= 1

            def _answer(self, body, fault):
                if fault is HANG:
                    server.closing.wait()
                    self.close_connection = True
                    return
                given = self.headers.get("Authorization", "")
                if server.key is not None and given != f"Bearer {server.key}":
                    fault = Fault(401, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}))
                if self.path != "/v1/chat/completions":
                    fault = Fault(404, '{"error": "no such path"}')
                if fault is None:
                    fault = Fault(200, json.dumps(completion(server.reply(body), body)))
                content = fault.body.encode()
                if server.goes_after is not None and len(server.requests) >= server.goes_after:
                    server.close()
                    self.close_connection = True
                with server._lock:  # before the client hears of it, so that the next request is no overlap
                    server.open -= 1
                self.send_response(fault.status)
                for name, value in fault.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                with server._lock:
                    server.open += 1

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def texts(self) -> list[str]:
        """The text of each request."""
        return [text_of(body) for body in self.requests]

    def close(self) -> None:
        if self.closing.is_set():
            return
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def completion(text: object, body: dict) -> dict:
    """A completion as servers write it; ten tokens asked, two replied."""
    return {
        "id": "x",
        "object": "chat.completion",
        "model": f"{body['model']}-served",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def text_of(body: dict) -> str:
    """All text of the last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
