"""Answers from a served model: a real HTTP server, real records."""

from __future__ import annotations

import gc
import json

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import RED, write_columns, write_hub
from tests.serving import HANG, KEY, ChatServer, Fault, text_of
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.errors import ConfigError
from vlmkit.evaluation.runner import run_benchmark
from vlmkit.generation.backend import GenerationBackend, GenerationParams
from vlmkit.generation.endpoint import EndpointError
from vlmkit.generation.server_backend import ServerBackend

SETTINGS = {
    "model": "m", "api_key_env": "PLANTED_KEY", "timeout_seconds": 5.0, "retries": 2, "retry_seconds": 0.01,
    "concurrency": 4, "video": "frames", "video_frames": 4, "extra_body": {},
}  # fmt: skip
PARAMS = GenerationParams(max_new_tokens=9, batch_size=3)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    made = ChatServer(reply=lambda body: f"said {text_of(body)}")
    yield made
    made.close()
    gc.collect()


def backend(server, **settings) -> ServerBackend:
    return ServerBackend(**(SETTINGS | {"base_url": server.url} | settings))


def question(text: str, *more) -> Conversation:
    return Conversation((Turn("user", (*more, TextPart(text))),))


def test_answers_come_in_order_with_tokens_and_greedily(server):
    made = backend(server)
    assert isinstance(made, GenerationBackend)
    found = made.generate([question(str(number)) for number in range(7)], PARAMS)
    assert [one.text for one in found] == [f"said {number}" for number in range(7)]
    assert {(one.num_tokens, one.error, one.transient) for one in found} == {(2, None, False)}
    assert {(body["max_tokens"], body["temperature"]) for body in server.requests} == {(9, 0)}
    assert made.generate([], PARAMS) == []


def test_further_fields_go_along_and_null_takes_one_out(server):
    extra = {"max_tokens": None, "max_completion_tokens": 9, "temperature": None}
    made = backend(server, extra_body=extra)
    made.generate([question("x")], PARAMS)
    assert server.requests == [
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 9}
    ]
    assert json.loads(made.identity["extra_body"]) == extra


def test_the_identity_says_that_weights_are_not_known_and_nothing_of_key_or_place(server):
    told = backend(server).identity
    assert (told["backend"], told["model"], told["video"]) == ("server", "m", "4 frames")
    assert told["weights"].startswith("not known")
    assert server.url not in str(told)
    assert KEY not in str(told)


def test_one_bad_case_is_its_own_error(server, tmp_path):
    server.reply = lambda body: "fine"
    server.faults = [Fault(400, '{"error": {"message": "image too large"}}')]
    conversations = [question("a"), question("b", ImagePart(tmp_path / "gone.png")), question("c")]
    first, second, third = backend(server, concurrency=1).generate(conversations, PARAMS)
    assert "answered 400: image too large" in first.error
    assert "gone.png' not found" in second.error
    assert (third.text, third.error) == ("fine", None)
    assert (first.transient, second.transient) == (False, False)


def test_what_failed_for_a_time_is_asked_again_and_nothing_else(server, tmp_path):
    benchmark = make("realworldqa", write_hub(tmp_path, "realworldqa"), protocol="lmms-eval")
    server.reply = lambda body: "B"
    server.faults = [Fault(503)]
    first = run_benchmark(benchmark, backend(server, retries=0, concurrency=1), settings(tmp_path))
    assert [record["outcome"] for record in first] == ["failed", "failed", "wrong"]
    assert "503" in first[0]["error"]
    assert first[0]["transient"]
    second = run_benchmark(benchmark, backend(server), settings(tmp_path))
    assert [record["outcome"] for record in second] == ["right", "failed", "wrong"]
    assert "transient" not in second[0]
    assert len(server.requests) == 3
    lines = (tmp_path / "out" / "realworldqa" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2"]


def test_a_server_that_goes_down_ends_the_run_and_loses_nothing(server, tmp_path):
    columns = {"question": [f"{n}?" for n in range(20)], "answer": ["yes"] * 20, "image": [RED] * 20}
    write_columns(tmp_path / "realworldqa" / "test-00000-of-00001.parquet", columns)
    benchmark, place = make("realworldqa", tmp_path, protocol="lmms-eval"), settings(tmp_path)
    server.reply, server.goes_after = (lambda body: "yes"), 10
    with pytest.raises(EndpointError, match="backend: .*Start a server there"):
        run_benchmark(benchmark, backend(server, concurrency=1), place)
    path = tmp_path / "out" / "realworldqa" / "records.jsonl"
    assert 0 < len(path.read_text().splitlines()) <= 10
    again = ChatServer(reply=lambda body: "yes")
    try:
        found = run_benchmark(benchmark, backend(again), place)
        assert [record["outcome"] for record in found] == ["right"] * 20
        assert len(again.requests) < 20, "what was answered is not asked again"
    finally:
        again.close()


def test_settings_that_cannot_be(server):
    for wrong, told in (({"video": "gif"}, "backend.video=gif: choose frames or video_url"),
                           ({"video_frames": 0}, "backend.video_frames=0: must be at least 1"),
                           ({"base_url": "nowhere"}, "backend.base_url=nowhere")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            backend(server, **wrong)


def test_a_server_that_hangs_costs_its_time_out(server):
    server.always = HANG
    (found,) = backend(server, timeout_seconds=0.2, retries=0).generate([question("x")], PARAMS)
    assert "no answer within 0.2 s" in found.error
    assert found.transient
