"""The HTTP client against a real server: retries, patience, refusals, and a key that nobody gets to see."""

from __future__ import annotations

import gc
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.serving import HANG, KEY, ChatServer, Fault
from vlmkit.errors import ConfigError
from vlmkit.generation import endpoint as module
from vlmkit.generation.endpoint import ChatEndpoint, EndpointError, RequestError, in_parallel, retry_after

ASKED = [{"role": "user", "content": "How many?"}]
SETTINGS = {
    "where": "judge", "model": "m", "api_key_env": "PLANTED_KEY", "timeout_seconds": 5.0, "retries": 3,
    "retry_seconds": 0.01, "concurrency": 4,
}  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    made = ChatServer()
    yield made
    made.close()
    gc.collect()  # connections that are left open would be told here


def endpoint(server, **settings) -> ChatEndpoint:
    return ChatEndpoint(**(SETTINGS | {"base_url": server.url} | settings))


def test_a_reply_is_read_and_fields_are_sent(server):
    made = endpoint(server)
    reply = made.complete(ASKED, fields={"temperature": 0, "max_tokens": 7, "seed": None})
    assert (reply.text, reply.model, reply.finish_reason) == ("1", "m-served", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 2)
    assert server.requests == [{"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 7}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500), Fault(503), Fault(429), Fault(408), Fault(200, "not json"), Fault(200, "{}"), Fault(200, "[]"),
        Fault(200, '{"choices": []}'), Fault(200, '{"choices": [{"message": {"content": 5}}]}'),
        Fault(200, "<html>gateway</html>"),
    ],
    ids=lambda fault: f"{fault.status} {fault.body[:12]}",
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, fault):
    server.faults = [fault, fault]
    assert endpoint(server).complete(ASKED, fields={}).text == "1"
    assert len(server.requests) == 3


def test_what_never_passes_fails_with_what_was_said(server):
    server.always = Fault(500, '{"error": {"message": "out of   memory"}}')
    with pytest.raises(RequestError, match=r"answered 500: out of memory \(4 tries\)") as caught:
        endpoint(server).complete(ASKED, fields={})
    assert caught.value.transient
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_tried_again(server, status):
    server.always = Fault(status, '{"detail": "too large"}')
    with pytest.raises(RequestError, match=f"answered {status}: too large") as caught:
        endpoint(server).complete(ASKED, fields={})
    assert not caught.value.transient
    assert len(server.requests) == 1


def test_no_answer_in_time_is_tried_again_and_told(server):
    server.faults = [HANG]
    assert endpoint(server, timeout_seconds=0.2).complete(ASKED, fields={}).text == "1"
    server.always = HANG
    with pytest.raises(RequestError, match=r"no answer within 0\.2 s \(2 tries\)") as caught:
        endpoint(server, timeout_seconds=0.2, retries=1).complete(ASKED, fields={})
    assert caught.value.transient
    assert len(server.requests) == 4


def test_a_wrong_key_is_told_at_once_and_never_shown(server):
    server.key = "another"
    with pytest.raises(
        EndpointError, match="answered 401: Incorrect API key provided: Bearer \\*\\*\\* Give another key: the one in"
    ) as caught:
        endpoint(server).complete(ASKED, fields={})
    assert "environment variable PLANTED_KEY (judge.api_key_env)" in str(caught.value)
    assert KEY not in str(caught.value) + repr(caught.value) + repr(caught.value.__context__)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        (None, "none was sent, since judge.api_key_env is null"),
        ("GONE_KEY", r"none was sent, since the environment variable GONE_KEY .judge.api_key_env. is not set"),
    ],
)
def test_a_missing_key_is_told(server, monkeypatch, variable, told):
    monkeypatch.delenv("GONE_KEY", raising=False)
    server.key = KEY
    with pytest.raises(EndpointError, match=told):
        endpoint(server, api_key_env=variable).complete(ASKED, fields={})
    assert "Authorization" not in server.headers[0]


def test_no_attribute_or_representation_has_the_key(server):
    made = endpoint(server)
    made.complete(ASKED, fields={})
    plain = {name: value for name, value in vars(made).items()}
    assert KEY not in repr(made) + repr(plain) + repr(vars(plain["_made"])["_headers"])


def test_unknown_models_redirects_and_empty_accounts_end_it(server):
    for fault, told in (
        (Fault(404, '{"error": {"message": "no model m"}}'), "no model m Check judge.model=m and judge.base_url"),
        (Fault(307, "", {"Location": "https://elsewhere/v1"}), "a redirect to https://elsewhere/v1"),
        (
            Fault(429, '{"error": {"code": "insufficient_quota", "message": "pay"}}'),
            "insufficient_quota pay Raise the limit of the account",
        ),
    ):
        server.always = fault
        with pytest.raises(EndpointError, match=told):
            endpoint(server).complete(ASKED, fields={})
    assert len(server.requests) == 3


def test_no_server_is_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    made = ChatEndpoint(**SETTINGS, base_url=url)
    with pytest.raises(
        EndpointError, match=r"judge: http://127\.0\.0\.1:\d+/v1 .*refused \(4 tries\)\. Start a server"
    ):
        made.complete(ASKED, fields={})


def test_a_server_is_left_alone_as_long_as_it_asks(server):
    server.faults = [Fault(429, "{}", {"Retry-After": "0.4"}), Fault(503, "{}", {"Retry-After-Ms": "150"})]
    started = time.monotonic()
    assert endpoint(server, retry_seconds=0).complete(ASKED, fields={}).text == "1"
    assert 0.55 <= time.monotonic() - started < 5


def test_all_requests_wait_when_a_server_asks_for_it(server):
    made = endpoint(server, retries=0)
    server.faults = [Fault(429, "{}", {"Retry-After": "0.5"})]
    with pytest.raises(RequestError):
        made.complete(ASKED, fields={})
    started = time.monotonic()
    assert made.complete(ASKED, fields={}).text == "1"  # another request than the one that was told to wait
    assert time.monotonic() - started >= 0.4


def test_who_asks_for_an_hour_gets_none(server):
    server.always = Fault(429, "{}", {"Retry-After": "3600"})
    with pytest.raises(RequestError, match="answered 429 and to come back after 3600 s") as caught:
        endpoint(server).complete(ASKED, fields={})
    assert caught.value.transient
    assert len(server.requests) == 1


def test_retry_after_is_read_in_all_its_forms():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": later}) == pytest.approx(100, abs=2)
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_waits_grow_within_their_jitter(server):
    made = endpoint(server, retry_seconds=2)
    for attempt, longest in ((1, 2), (2, 4), (3, 8), (10, 60)):
        waits = [made._backoff(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < longest * 0.6
        assert longest * 0.9 < max(waits) <= longest


def test_an_outage_ends_the_run(server, monkeypatch):
    monkeypatch.setattr(module, "FAILURES_THAT_END_A_RUN", 3)
    made = endpoint(server, retries=0)
    for number in range(8):
        server.faults = [Fault(503)] if number != 2 else []  # a success in between begins the count anew
        if number < 5:
            try:
                made.complete(ASKED, fields={})
            except RequestError:
                assert number != 2
        elif number == 5:
            with pytest.raises(EndpointError, match="3 requests in a row failed, the last: .*503"):
                made.complete(ASKED, fields={})


def test_refused_requests_are_no_outage(server, monkeypatch):
    monkeypatch.setattr(module, "FAILURES_THAT_END_A_RUN", 2)
    server.always = Fault(400)
    made = endpoint(server)
    for _ in range(4):
        with pytest.raises(RequestError):
            made.complete(ASKED, fields={})


def test_no_more_than_so_many_at_a_time(server):
    server.together = threading.Barrier(3)
    made = endpoint(server, concurrency=3)
    replies = list(in_parallel(lambda number: made.complete(ASKED, fields={"n": number}).text, range(12), workers=3))
    assert sorted(replies) == [(number, "1") for number in range(12)]
    assert server.most_at_once == 3


def test_items_are_drawn_only_when_a_worker_is_free():
    drawn, free = [], threading.Semaphore(0)

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    def work(number):
        free.acquire()
        return -number

    results = in_parallel(work, items(), workers=2)
    free.release()
    item, result = next(results)
    assert result == -item
    assert len(drawn) <= 3, "one is done, two are under way"
    results.close()
    free.release(100)


def test_a_fault_of_the_function_ends_it():
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda number: 1 // number, [0, *range(1, 10)], workers=1))


def test_a_fault_of_the_items_ends_it():
    def items():
        yield 1
        raise ValueError("broken row")

    with pytest.raises(ValueError, match="broken row"):
        list(in_parallel(lambda number: number, items(), workers=2))
    assert list(in_parallel(str, [], workers=2)) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_url": "localhost:8000"}, "judge.base_url=localhost:8000: wanted an address"),
        ({"base_url": "http://me:secret@host/v1"}, "holds a user or a password"),
        ({"api_key_env": KEY}, "what was given is no name of an environment variable. Put the key into one"),
        ({"timeout_seconds": 0.0}, "judge.timeout_seconds=0.0: must be at least"),
        ({"concurrency": 0}, "judge.concurrency=0: must be at least 1"),
        ({"retries": -1}, "judge.retries=-1: must not be negative"),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        ChatEndpoint(**(SETTINGS | {"base_url": "http://localhost/v1"} | settings))
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key_that_is_none_is_told_without_it(server, monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", "sk-ü\nX")
    with pytest.raises(ConfigError, match="PLANTED_KEY: what this variable holds is no key") as caught:
        endpoint(server).complete(ASKED, fields={})
    assert "sk-" not in str(caught.value)


def test_the_whole_address_may_be_given(server):
    assert endpoint(server, base_url=f"{server.url}/chat/completions").complete(ASKED, fields={}).text == "1"
    assert server.requests[0]["messages"] == ASKED
