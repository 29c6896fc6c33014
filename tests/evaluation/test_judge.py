"""The judging pass against a real server: replies kept, nothing asked twice, nothing guessed, everything counted."""

from __future__ import annotations

import gc
import json

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import RED, write_columns
from tests.serving import KEY, ChatServer, Fault, text_of
from vlmkit.errors import ConfigError, VlmkitError
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.judge import Judge, judge_records, reply_key
from vlmkit.evaluation.judging import CONTENT_LIMIT, Judgeable, JudgedBenchmark, JudgePrompt
from vlmkit.evaluation.runner import run_answers, score_records
from vlmkit.generation.endpoint import EndpointError

SETTINGS = {
    "model": "m", "api_key_env": "PLANTED_KEY", "temperature": 0, "max_tokens": 64, "timeout_seconds": 5.0, "retries": 2,
    "retry_seconds": 0.01, "concurrency": 3, "rereads": 2, "input_price": 1.0, "output_price": 10.0, "extra_body": {},
}  # fmt: skip
ANSWERS = {"1": "Ada Lovelace", "2": "Charles", "3": "I do not know", "4": "Ada, Countess"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    made = ChatServer(reply=verdict)
    yield made
    made.close()
    gc.collect()


def verdict(body: dict) -> str:
    answer = answer_in(body)
    return "**CORRECT**" if "Ada" in answer else "NOT_ATTEMPTED" if "know" in answer else "Incorrect."


def answer_in(body: dict) -> str:
    return text_of(body).rsplit("\nAnswer: ", 1)[1]


def judge(server, **changed) -> Judge:
    return Judge(**(SETTINGS | {"base_url": server.url} | changed))


def answered(tmp_path, answers=ANSWERS):
    """SimpleVQA with answers recorded, as a judge finds it."""
    write_columns(
        tmp_path / "simplevqa" / "test-00000-of-00001.parquet",
        {
            "data_id": list(range(1, len(answers) + 1)), "image": [RED] * len(answers), "image_description": [""] * len(answers),
            "language": ["EN"] * len(answers), "question": [f"Who is number {n}?" for n in range(len(answers))],
            "answer": ["Ada Lovelace"] * len(answers), "vqa_category": ["people"] * len(answers),
        },
    )  # fmt: skip
    benchmark = make("simplevqa", tmp_path)
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in answers.items()))
    run_answers(benchmark, FileAnswers(path), settings(tmp_path))
    assert isinstance(benchmark, Judgeable)
    return JudgedBenchmark(benchmark)


def counts(made: Judge, benchmark, records) -> dict:
    told = made.figures(benchmark, records)["judging"]
    return {name: told[name] for name in ("judged", "cached", "failed", "by_rule", "unanswered", "requests")}


def test_verdicts_are_read_kept_and_counted(server, tmp_path):
    benchmark, made = answered(tmp_path), judge(server)
    records = judge_records(benchmark, made, settings(tmp_path))
    assert [(one["outcome"], one["extracted"]) for one in records] == [
        ("right", "correct"), ("wrong", "incorrect"), ("unparsed", "not_attempted"), ("right", "correct"),
    ]  # fmt: skip
    assert records[0]["judgement"] == {
        "judge": "m", "served": ["m-served"], "prompts": ["factual-attempt/1"], "replies": ["**CORRECT**"], "requests": 1,
        "prompt_tokens": 10, "completion_tokens": 2,
    }  # fmt: skip
    figures = aggregate(benchmark, records) | made.figures(benchmark, records)
    assert (figures["metric"], figures["n"], figures["parsed"]) == ("judged_f1", 4, 0.75)
    assert figures["score"] == pytest.approx(100 * 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5), abs=1e-3)
    assert figures["judge"]["model"] == "m"
    assert list(figures["judge"]["prompts"]) == ["factual-attempt/1"]
    assert counts(made, benchmark, records) == {
        "judged": 4, "cached": 0, "failed": 0, "by_rule": 0, "unanswered": 0, "requests": 4,
    }  # fmt: skip
    assert figures["judging"]["cost"] == pytest.approx((40 * 1.0 + 8 * 10.0) / 1e6)
    assert figures["judging"]["served"] == ["m-served"]
    saved = [json.loads(line) for line in (tmp_path / "out/simplevqa/records.jsonl").read_text().splitlines()]
    assert saved == records


def test_a_second_run_asks_nothing(server, tmp_path):
    benchmark = answered(tmp_path)
    first = judge_records(benchmark, judge(server), settings(tmp_path))
    made = judge(server, api_key_env="NO_SUCH_KEY")
    second = judge_records(benchmark, made, settings(tmp_path))
    assert len(server.requests) == 4
    assert [(one["score"], one["outcome"]) for one in second] == [(one["score"], one["outcome"]) for one in first]
    assert counts(made, benchmark, second) == {
        "judged": 4, "cached": 4, "failed": 0, "by_rule": 0, "unanswered": 0, "requests": 0,
    }  # fmt: skip
    assert made.figures(benchmark, second)["judging"]["cost"] == 0


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"temperature": 1.0}, {"max_tokens": 9}, {"extra_body": {"seed": 1}}]
)
def test_another_judge_is_asked_anew(server, tmp_path, changed):
    benchmark = answered(tmp_path)
    judge_records(benchmark, judge(server), settings(tmp_path))
    judge_records(benchmark, judge(server, **changed), settings(tmp_path))
    assert len(server.requests) == 8


def test_another_answer_or_prompt_is_another_key():
    base = {"model": "m", "text": "t", "fields": {"temperature": 0}, "attempt": 0}
    others = [{"model": "n"}, {"text": "u"}, {"fields": {"temperature": 1}}, {"attempt": 1}]
    assert len({reply_key(**base), *(reply_key(**(base | other)) for other in others)}) == 5


def test_a_torn_cache_is_repaired_and_only_what_it_lost_is_asked(server, tmp_path, caplog):
    benchmark = answered(tmp_path)
    judge_records(benchmark, judge(server, concurrency=1), settings(tmp_path))
    path = tmp_path / "out/simplevqa/judgements.jsonl"
    content = path.read_text()
    path.write_text(content[:-20])
    records = judge_records(benchmark, judge(server), settings(tmp_path))
    assert len(server.requests) == 5
    assert "cut back to its last whole record" in caplog.text
    assert [one["outcome"] for one in records] == ["right", "wrong", "unparsed", "right"]
    assert len(path.read_text().splitlines()) == 4


def test_an_interrupted_pass_goes_on_where_it_was(server, tmp_path):
    benchmark = answered(tmp_path)
    server.goes_after = 2
    before = (tmp_path / "out/simplevqa/records.jsonl").read_text()
    with pytest.raises(EndpointError, match="judge: .*Start a server there"):
        judge_records(benchmark, judge(server, concurrency=1), settings(tmp_path))
    assert (tmp_path / "out/simplevqa/records.jsonl").read_text() == before
    again = ChatServer(reply=verdict)
    try:
        records = judge_records(benchmark, judge(again), settings(tmp_path))
        assert len(again.requests) == 2, "the same model elsewhere: what it said is not asked again"
        assert [one["outcome"] for one in records] == ["right", "wrong", "unparsed", "right"]
    finally:
        again.close()


def test_an_unreadable_reply_is_asked_again_hotter_and_then_a_failure(server, tmp_path):
    server.reply = lambda body: "Well, CORRECT or INCORRECT?" if body["temperature"] < 1 else verdict(body)
    benchmark = answered(tmp_path, {"1": "Ada"})
    (record,) = judge_records(benchmark, judge(server), settings(tmp_path))
    assert [body["temperature"] for body in server.requests] == [0, 0.5, 1.0]
    assert record["outcome"] == "right"
    assert len(record["judgement"]["replies"]) == 3
    server.reply = lambda body: "hm"
    benchmark = answered(tmp_path, {"1": "Ada!"})
    made = judge(server, rereads=1)
    (record,) = judge_records(benchmark, made, settings(tmp_path))
    assert (record["outcome"], record["score"], record["extracted"]) == ("failed", 0.0, None)
    assert record["judgement"]["error"] == "the judge's reply 'hm' is not CORRECT, INCORRECT or NOT_ATTEMPTED"
    assert record["judgement"]["replies"] == ["hm", "hm"]
    assert counts(made, benchmark, [record])["failed"] == 1


def test_a_reply_that_is_cut_short_says_so(server, tmp_path):
    body = {"model": "m", "choices": [{"finish_reason": "length", "message": {"content": "Let me think"}}]}
    server.always = Fault(200, json.dumps(body))
    (record,) = judge_records(answered(tmp_path, {"1": "Ada"}), judge(server, rereads=0), settings(tmp_path))
    assert "'Let me think', cut at judge.max_tokens=64 is not" in record["judgement"]["error"]


def test_the_reasoning_of_a_judge_is_no_verdict(server, tmp_path):
    server.reply = lambda body: "<think>INCORRECT? No.</think>\nCORRECT"
    (record,) = judge_records(answered(tmp_path, {"1": "Ada"}), judge(server), settings(tmp_path))
    assert record["outcome"] == "right"


def test_requests_that_fail_are_failures_and_asked_by_the_next_run(server, tmp_path):
    benchmark = answered(tmp_path)
    server.always = Fault(500)
    made = judge(server, retries=0)
    records = judge_records(benchmark, made, settings(tmp_path))
    assert {one["outcome"] for one in records} == {"failed"}
    assert all("answered 500: planted" in one["judgement"]["error"] for one in records)
    assert counts(made, benchmark, records)["failed"] == 4
    figures = aggregate(benchmark, records)
    assert (figures["score"], figures["parsed"], figures["outcomes"]) == (0.0, 0.0, {"failed": 4})
    server.always = None
    records = judge_records(benchmark, judge(server), settings(tmp_path))
    assert [one["outcome"] for one in records] == ["right", "wrong", "unparsed", "right"]
    assert all("error" not in one["judgement"] for one in records)


def test_429_and_malformed_answers_are_tried_again(server, tmp_path):
    server.faults = [Fault(429, "{}", {"Retry-After": "0"}), Fault(200, "oops"), Fault(503)]
    records = judge_records(answered(tmp_path), judge(server, retries=3), settings(tmp_path))
    assert [one["outcome"] for one in records] == ["right", "wrong", "unparsed", "right"]
    assert len(server.requests) == 7


def test_a_wrong_key_ends_it_at_once(server, tmp_path):
    server.key = "another"
    with pytest.raises(EndpointError, match="answered 401"):
        judge_records(answered(tmp_path), judge(server, concurrency=1), settings(tmp_path))
    assert len(server.requests) == 1


def test_the_key_is_in_no_file(server, tmp_path):
    server.faults = [Fault(400, json.dumps({"error": f"bad, dear {KEY}"}))]
    benchmark, made = answered(tmp_path), judge(server)
    records = judge_records(benchmark, made, settings(tmp_path))
    assert sum(one["outcome"] == "failed" for one in records) == 1
    assert KEY not in json.dumps([records, made.figures(benchmark, records), str(vars(made))], default=repr)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)


def test_no_more_than_so_many_are_judged_at_a_time(server, tmp_path):
    import threading

    server.together = threading.Barrier(3)
    judge_records(answered(tmp_path, {str(n): f"Ada {n}" for n in range(1, 10)}), judge(server), settings(tmp_path))
    assert (len(server.requests), server.most_at_once) == (9, 3)


def test_what_has_no_answer_is_not_judged(server, tmp_path):
    benchmark = answered(tmp_path)
    path = tmp_path / "out/simplevqa/records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1] |= {"error": "out of memory", "outcome": "failed"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = judge(server)
    records = judge_records(benchmark, made, settings(tmp_path))
    assert records[1]["outcome"] == "failed"
    assert "judgement" not in records[1]
    assert counts(made, benchmark, records) == {
        "judged": 3, "cached": 0, "failed": 0, "by_rule": 0, "unanswered": 1, "requests": 3,
    }  # fmt: skip


def test_a_rule_scores_again_without_a_trace_of_the_judge(server, tmp_path):
    benchmark = answered(tmp_path)
    judge_records(benchmark, judge(server), settings(tmp_path))
    records = score_records(benchmark.benchmark, settings(tmp_path))
    assert [one["outcome"] for one in records] == ["right", "wrong", "wrong", "wrong"]
    assert all("judgement" not in one for one in records)


def test_records_beyond_the_limit_stay(server, tmp_path):
    from dataclasses import replace

    benchmark = answered(tmp_path)
    records = judge_records(benchmark, judge(server), replace(settings(tmp_path), max_samples=2))
    assert [one["id"] for one in records] == ["1", "2"]
    assert len((tmp_path / "out/simplevqa/records.jsonl").read_text().splitlines()) == 4
    assert len(server.requests) == 2


def test_without_records_there_is_nothing_to_judge(server, tmp_path):
    with pytest.raises(VlmkitError, match="no records to judge. Run the evaluation without rescore=true first"):
        judge_records(JudgedBenchmark(make("simplevqa", tmp_path)), judge(server), settings(tmp_path))
    with pytest.raises(ConfigError, match="judge.rereads=-1"):
        judge(server, rereads=-1)


def test_a_prompt_is_known_by_its_words_and_fills_them_as_they_are():
    one = JudgePrompt(name="x", version=1, wanted="y", template="Q: $question A: $answer")
    other = JudgePrompt(name="x", version=1, wanted="y", template="Q: $question  A: $answer")
    assert one.fingerprint != other.fingerprint
    asked = one.ask(str, question="$answer costs ${5}", answer="{braces} $question " + "x" * 2 * CONTENT_LIMIT)
    assert asked.text.startswith("Q: $answer costs ${5} A: {braces} $question xxx")
    assert asked.text.endswith("x [cut here]")
    assert len(asked.text) < CONTENT_LIMIT + 100
