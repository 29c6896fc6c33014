"""A page to talk with a model, served to this machine alone.

The page and its few answers come from one small HTTP server on the loopback address. Whoever asks must name that address
(so that no other site's name can be pointed at it) and bring the token that stands in the page (so that no other site's
page can ask in its place).
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import tempfile
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from vlmkit.conversation import Conversation, ImagePart, Part, TextPart, Turn, VideoPart
from vlmkit.errors import ConfigError, DataError, VlmkitError
from vlmkit.generation.chat import VIDEO_SUFFIXES
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.generation.streaming import Told, stream_answer
from vlmkit.pages.document import make_document
from vlmkit.pages.seen import look

_log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MAX_MEDIUM_BYTES = 512 << 20
MAX_QUESTION_BYTES = 4 << 20
Medium = ImagePart | VideoPart


class ChatServer(ThreadingHTTPServer):
    """Serves the page, takes media, streams answers; one answer at a time.

    Args:
        backend: Who answers.
        model: What the page calls it.
        max_new_tokens: Most tokens of an answer.
        system: What the model is told before everything; None: nothing.
        port: On the loopback address; 0 takes a free one.

    Attributes:
        url: Where the page is.

    Raises:
        ConfigError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, *, backend: HFBackend, model: str, max_new_tokens: int, system: str | None, port: int) -> None:
        self.backend, self.model = backend, model
        self.max_new_tokens, self.system = max_new_tokens, system
        self.token = secrets.token_urlsafe(16)
        self.media: dict[str, Medium] = {}
        self.answering = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="vlmkit-chat-")
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port={port}: nothing can be served there ({error}). Choose another port.") from error
        self.url = f"http://{HOST}:{self.server_port}/"

    def page(self) -> str:
        """The page, with the token it asks with."""
        told = {"model": self.model, "token": self.token, "maxNewTokens": self.max_new_tokens}
        return make_document(
            name="chat", title=f"{self.model} · vlmkit", heading="Talk with a model", data={"chat": told}, asks=True
        )

    def keep(self, content: bytes, name: str) -> tuple[str, Medium]:
        """Keep a medium for the time of the server; a video lies in a file of a folder that goes with it."""
        number = secrets.token_urlsafe(12)
        suffix = Path(name).suffix.lower()
        part: Medium
        if suffix in VIDEO_SUFFIXES:
            path = Path(self._folder.name) / f"{number}{suffix}"
            path.write_bytes(content)
            part = VideoPart(path)
        else:
            part = ImagePart(content)
        self.media[number] = part
        return number, part

    def server_close(self) -> None:
        """Stop, and remove what was kept."""
        super().server_close()
        self._folder.cleanup()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no fault; anything else is told."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An answer that is an error, for the page to show."""

    def __init__(self, status: HTTPStatus, told: str) -> None:
        super().__init__(told)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vlmkit", ""

    @property
    def _chat(self) -> ChatServer:
        return cast(ChatServer, self.server)

    def do_GET(self) -> None:
        """The page."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A medium, or a question."""
        self._answer(self._post)

    def _answer(self, work: Any) -> None:
        try:
            self._check_host()
            work()
        except _Refused as refused:
            self._send_json({"error": str(refused)}, refused.status)
        except VlmkitError as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    def _check_host(self) -> None:
        port = self._chat.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self.close_connection = True
            raise _Refused(HTTPStatus.FORBIDDEN, f"This page is served to {self._chat.url} alone.")

    def _get(self) -> None:
        if self.path != "/":
            raise _Refused(HTTPStatus.NOT_FOUND, f"There is nothing at {self.path}.")
        self._send(self._chat.page().encode(), "text/html; charset=utf-8")

    def _post(self) -> None:
        given = self.headers.get("X-Vlmkit-Token", "")
        if not hmac.compare_digest(given.encode(), self._chat.token.encode()):
            self.close_connection = True
            raise _Refused(HTTPStatus.FORBIDDEN, "The page is of an earlier start of the server. Load it again.")
        if self.path == "/media":
            self._take_medium()
        elif self.path == "/ask":
            self._ask()
        else:
            self.close_connection = True
            raise _Refused(HTTPStatus.NOT_FOUND, f"There is nothing at {self.path}.")

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "The request does not say its length.")
        if int(length) > most:
            self.close_connection = True
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"More than {most >> 20} MiB. Take a smaller file.")
        return self.rfile.read(int(length))

    def _take_medium(self) -> None:
        name = unquote(self.headers.get("X-Vlmkit-Name", "")) or "file"
        number, part = self._chat.keep(self._body(MAX_MEDIUM_BYTES), name)
        try:
            seen = look(part, self._chat.backend.processor)
        except DataError:
            del self._chat.media[number]
            raise
        self._send_json({"id": number, "name": name, **seen.to_json(), "line": seen.to_text()})

    def _ask(self) -> None:
        turns = self._turns(self._body(MAX_QUESTION_BYTES))
        if not self._chat.answering.acquire(blocking=False):
            raise _Refused(HTTPStatus.CONFLICT, "Another answer is being given. Wait for its end.")
        try:
            self._stream(Conversation(turns))
        finally:
            self._chat.answering.release()

    def _turns(self, body: bytes) -> tuple[Turn, ...]:
        """What was said, from the page's JSON: `{"turns": [{"role", "text", "media": [id]}]}`."""
        try:
            told = json.loads(body)["turns"]
            turns = tuple(self._turn(one) for one in told)
        except (ValueError, KeyError, TypeError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"The question is not readable ({error}).") from error
        if not turns or turns[-1].role != "user":
            raise _Refused(HTTPStatus.BAD_REQUEST, "The last turn must be the user's.")
        system = self._chat.system
        return ((Turn("system", (TextPart(system),)),) if system else ()) + turns

    def _turn(self, told: Mapping[str, Any]) -> Turn:
        parts: list[Part] = []
        for number in told.get("media", ()):
            if number not in self._chat.media:
                raise _Refused(HTTPStatus.GONE, "An image is of an earlier start of the server. Add it again.")
            parts.append(self._chat.media[number])
        role = told["role"]
        if role not in ("user", "assistant") or not isinstance(told["text"], str):
            raise ValueError("a turn has a role, user or assistant, and a text")
        return Turn(role, (*parts, TextPart(told["text"])))

    def _stream(self, conversation: Conversation) -> None:
        """Lines of JSON: `{"text": piece}` as they come, at the end `{"told": figures}` or `{"error": message}`."""
        stop = threading.Event()
        items = stream_answer(self._chat.backend, conversation, max_new_tokens=self._chat.max_new_tokens, stop=stop)
        first = next(items)  # what cannot be encoded is refused before anything is sent
        self.send_response(HTTPStatus.OK)
        self._head("application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._send_item(first)
            for item in items:
                self._send_item(item)
            self._chunk(b"")
        except ConnectionError:  # the page was closed, or its button pressed
            self.close_connection = True
        except RuntimeError as error:  # the device's memory, above all
            self._chunk(json.dumps({"error": str(error)}).encode() + b"\n")
            self._chunk(b"")
        finally:
            stop.set()
            items.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator

    def _send_item(self, item: str | Told) -> None:
        if isinstance(item, str):
            told: dict[str, Any] = {"text": item}
        else:
            told = {"told": vars(item) | {"tokens_per_second": item.tokens_per_second}}
        self._chunk(json.dumps(told).encode() + b"\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def _send_json(self, told: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(told).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self._head(kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _head(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are told where debugging is asked for."""
        _log.debug(format, *args)
