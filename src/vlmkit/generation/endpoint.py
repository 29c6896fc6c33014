"""One OpenAI-compatible endpoint: chat completions over HTTP, retried, several at a time. For judges and for served models.

The key is read from the environment when the first request is sent, and is held by the HTTP client's headers alone: no
attribute, record, message or representation has it, and it is cut out of whatever a server says.
"""

from __future__ import annotations

import os
import queue
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from vlmkit.errors import ConfigError, VlmkitError

Message = Mapping[str, Any]
"""A turn as the protocol has it: `role` and `content`, a text or a list of parts."""
Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for more patience than this gets none: the request has failed."""
FAILURES_THAT_END_A_RUN = 20
"""So many requests in a row that failed for good, each after its retries, are an outage and not their own fault."""
_CONNECT_SECONDS = 10.0
_TRANSIENT = frozenset({408, 409, 425, 429})
_SHOWN_CHARACTERS = 300
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointError(VlmkitError):
    """What every further request would meet too: no connection, a wrong key, an unknown model, an outage."""


class RequestError(Exception):
    """A request that got no answer; it is the error of its own case, and ends nothing.

    Attributes:
        transient: Whether the same request may well succeed later.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an endpoint answered.

    Attributes:
        text: The message; empty where it has none.
        model: The model as the server names it; "" where it does not.
        prompt_tokens: As the server counts them; 0 where it does not.
        completion_tokens: As above.
        finish_reason: `stop`, `length` (cut at the token limit), or what else the server says.
    """

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class ChatEndpoint:
    """Sends chat completions; safe to call from several threads.

    Args:
        where: Config key of the node that describes it, for messages.
        base_url: Up to where `/chat/completions` follows, mostly `.../v1`.
        model: As the server names it.
        api_key_env: Name of the environment variable that holds the key; None, or a variable that is not set: none is sent.
        timeout_seconds: Longest wait for one answer.
        retries: Further tries of a request that met a time-out, a lost connection, a 408, 409, 425, 429 or 5xx, or an
            answer that is no completion.
        retry_seconds: Wait before the first retry; twice as long before each further one (60 s at most), less a random
            part of up to a half. `Retry-After` of the server counts instead where it is longer, and for all requests.
        concurrency: Most connections at a time.

    Raises:
        ConfigError: a setting cannot be.
    """

    def __init__(
        self,
        *,
        where: str,
        base_url: str,
        model: str,
        api_key_env: str | None,
        timeout_seconds: float,
        retries: int,
        retry_seconds: float,
        concurrency: int,
    ) -> None:
        self.where = where
        self.base_url = _checked_url(base_url, where)
        self.model = model
        self.api_key_env = _checked_variable(api_key_env, where)
        for name, value, least in (("timeout_seconds", timeout_seconds, 0.001), ("concurrency", concurrency, 1)):
            if value < least:
                raise ConfigError(f"{where}.{name}={value}: must be at least {least}.")
        for name, value in (("retries", retries), ("retry_seconds", retry_seconds)):
            if value < 0:
                raise ConfigError(f"{where}.{name}={value}: must not be negative.")
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.retry_seconds = retry_seconds
        self.concurrency = concurrency
        self.num_requests = 0
        self._lock = threading.Lock()
        self._failures_in_row = 0
        self._resume_at = 0.0
        self._made: httpx.Client | None = None

    def complete(self, messages: Sequence[Message], *, fields: Mapping[str, Any]) -> Reply:
        """Send a conversation and wait for the answer, trying again where that may help.

        Args:
            messages: The conversation.
            fields: Further fields of the request; one that is None is left out.

        Raises:
            RequestError: this request failed for good.
            EndpointError: every other would fail too.
        """
        body = {"model": self.model, "messages": list(messages), **fields}
        body = {name: value for name, value in body.items() if value is not None}
        failure: _Failure | None = None
        for attempt in range(self.retries + 1):
            self._wait(self._backoff(attempt) if attempt else 0.0)
            try:
                reply = self._send(body)
            except _Failure as found:
                failure = found
                if not failure.again:
                    break
            else:
                self._failures_in_row = 0
                return reply
        assert failure is not None
        raise self._final(failure)

    def _backoff(self, attempt: int) -> float:
        longest = min(self.retry_seconds * 2 ** (attempt - 1), LONGEST_BACKOFF_SECONDS)
        return longest * random.uniform(0.5, 1.0)

    def _wait(self, seconds: float) -> None:
        """Wait so long, and until the server wants to hear from us again."""
        until = max(time.monotonic() + seconds, self._resume_at)
        while (left := until - time.monotonic()) > 0:
            time.sleep(left)
            until = max(until, self._resume_at)

    def _send(self, body: Mapping[str, Any]) -> Reply:
        """One try.

        Raises:
            _Failure: no completion came back.
            EndpointError: none ever will.
        """
        with self._lock:
            self.num_requests += 1
        try:
            response = self._client.post("/chat/completions", json=body)
        except httpx.TimeoutException as error:
            told = "no connection" if isinstance(error, httpx.ConnectTimeout) else "no answer"
            raise _Failure(
                f"{told} within {self.timeout_seconds:g} s", again=True, unreachable=told == "no connection"
            ) from error
        except httpx.TransportError as error:
            told = self._without_key(str(error) or type(error).__name__)
            raise _Failure(told, again=True, unreachable=isinstance(error, httpx.ConnectError)) from error
        if response.status_code != 200:
            raise self._refused(response)
        return self._read(response)

    def _read(self, response: httpx.Response) -> Reply:
        try:
            told: Any = response.json()
            choice = told["choices"][0]
            content = choice["message"].get("content")
            if content is not None and not isinstance(content, str):
                raise TypeError("its content is no text")
            usage = told.get("usage") or {}
            return Reply(
                text=content or "",
                model=str(told.get("model") or ""),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
                finish_reason=str(choice.get("finish_reason") or ""),
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _Failure(f"answered what is no completion: {self._shown(response)}", again=True) from error

    def _refused(self, response: httpx.Response) -> Exception:
        """What an answer that is not 200 means."""
        status, told = response.status_code, self._shown(response)
        at = f"{self.where}: {self.base_url} answered {status}"
        if status in (401, 403):
            return EndpointError(f"{at}: {told} Give another key: {self._about_key()}.")
        if status == 404:
            return EndpointError(
                f"{at}: {told} Check {self.where}.model={self.model} and {self.where}.base_url, which mostly ends with /v1."
            )
        if status < 400:
            return EndpointError(
                f"{at}, a redirect to {response.headers.get('location', 'nowhere')}. Set {self.where}.base_url accordingly."
            )
        if "insufficient_quota" in told:
            return EndpointError(f"{at}: {told} Raise the limit of the account, which has nothing left to spend.")
        again = status in _TRANSIENT or status >= 500
        if again and (asked := retry_after(response.headers)) is not None:
            if asked > LONGEST_RETRY_AFTER_SECONDS:
                return _Failure(f"answered {status} and to come back after {asked:g} s", again=False, transient=True)
            with self._lock:
                self._resume_at = max(self._resume_at, time.monotonic() + asked)
        return _Failure(f"answered {status}: {told}", again=again)

    def _about_key(self) -> str:
        if self.api_key_env is None:
            return f"none was sent, since {self.where}.api_key_env is null"
        if "authorization" not in self._client.headers:
            return f"none was sent, since the environment variable {self.api_key_env} ({self.where}.api_key_env) is not set"
        return f"the one in the environment variable {self.api_key_env} ({self.where}.api_key_env) is refused"

    def _final(self, failure: _Failure) -> EndpointError | RequestError:
        """The error of a request that is given up."""
        tries = self.retries + 1 if failure.again else 1
        told = f"{self.base_url} {failure}" + (f" ({tries} tries)" if tries > 1 else "")
        if failure.unreachable:
            return EndpointError(
                f"{self.where}: {told}. Start a server there, or correct {self.where}.base_url; what was answered is kept."
            )
        if failure.transient:
            with self._lock:
                self._failures_in_row += 1
            if self._failures_in_row >= FAILURES_THAT_END_A_RUN:
                return EndpointError(
                    f"{self.where}: {self._failures_in_row} requests in a row failed, the last: {told}. "
                    "Run again later: what was answered is kept."
                )
        return RequestError(told, transient=failure.transient)

    @property
    def _client(self) -> httpx.Client:
        """The connection, made when it is first needed: who finds all answers in a cache needs no key."""
        with self._lock:
            if self._made is None:
                self._made = httpx.Client(
                    base_url=self.base_url,
                    headers=_authorization(self.api_key_env, self.where),
                    timeout=httpx.Timeout(
                        self.timeout_seconds, connect=min(self.timeout_seconds, _CONNECT_SECONDS), pool=None
                    ),
                    limits=httpx.Limits(max_connections=self.concurrency),
                )
                weakref.finalize(self, self._made.close)
            return self._made

    def _shown(self, response: httpx.Response) -> str:
        """What a server said, shortened, on one line, without the key."""
        text = response.text
        try:
            told: Any = response.json()
            error = told.get("error", told.get("detail")) if isinstance(told, dict) else None
            if isinstance(error, dict):
                told = cast("dict[str, Any]", error)
                text = " ".join(str(told[name]) for name in ("code", "message") if told.get(name)) or text
            elif isinstance(error, str):
                text = error
        except ValueError:
            pass
        text = " ".join(self._without_key(text).split())
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."

    def _without_key(self, text: str) -> str:
        key = self._client.headers.get("authorization", "").removeprefix("Bearer ")
        return text.replace(key, "***") if key else text


class _Failure(Exception):
    """One try that failed.

    Attributes:
        again: Whether another try may help now.
        transient: Whether one may help some day.
        unreachable: Whether there was no connection at all.
    """

    def __init__(self, message: str, *, again: bool, transient: bool | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.again = again
        self.transient = again if transient is None else transient
        self.unreachable = unreachable


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone, from `Retry-After` (seconds or a date) or `Retry-After-Ms`."""
    if (told := headers.get("retry-after-ms")) is not None:
        try:
            return max(0.0, float(told) / 1000)
        except ValueError:
            return None
    if (told := headers.get("retry-after")) is None:
        return None
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return None


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, as they come; items are drawn one by one, when a worker is free.

    The first exception, of the function or of the items, ends it: no further item is drawn. So does leaving the loop.
    Workers are daemons: an interrupt need not wait for a server.

    Args:
        function: Called in several threads.
        items: Drawn in one thread at a time.
        workers: Calls at a time.
    """
    source = iter(items)
    drawing, stopped = threading.Lock(), threading.Event()
    results: queue.Queue[tuple[Item, Result] | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with drawing:
                    item = next(source, _NOTHING)
                if item is _NOTHING:
                    break
                results.put((cast("Item", item), function(cast("Item", item))))
        except BaseException as error:  # raised again where the results are read
            results.put(error)
        results.put(None)

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    try:
        running = workers
        while running:
            found = results.get()
            if found is None:
                running -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found
    finally:
        stopped.set()


_NOTHING = object()


def _authorization(variable: str | None, where: str) -> dict[str, str]:
    """The header with the key of an environment variable; empty where there is none."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{where}.api_key_env={variable}: what this variable holds is no key. Set it to the key alone."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _checked_variable(variable: str | None, where: str) -> str | None:
    if variable is not None and not _VARIABLE.fullmatch(variable):
        raise ConfigError(
            f"{where}.api_key_env: what was given is no name of an environment variable. Put the key into one, and give its name."
        )
    return variable


def _checked_url(base_url: str, where: str) -> str:
    parts = urlsplit(base_url)
    if parts.username or parts.password:
        raise ConfigError(f"{where}.base_url holds a user or a password, which would be reported. Take them out.")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{where}.base_url={base_url}: wanted an address such as http://localhost:8000/v1.")
    return base_url.rstrip("/").removesuffix("/chat/completions")
