"""`vlmkit-eval` with a judge, and with a served model: what users type, read and find on the disk."""

from __future__ import annotations

import gc
import json
import logging

import pytest
from hydra import compose, initialize_config_dir

from tests.evaluation.benchmarks.test_judged import FILES
from tests.evaluation.real_columns import write_columns, write_hub
from tests.serving import KEY, ChatServer, Fault, text_of
from tests.training.conftest import run
from vlmkit.cli.eval import _task
from vlmkit.cli.validating import _benchmarks as live_benchmarks
from vlmkit.config import conf_dir
from vlmkit.errors import ConfigError, VlmkitError

VERDICTS = {"Ada": "CORRECT", "李白": "CORRECT", "Paris": "INCORRECT"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", KEY)
    made = ChatServer(reply=lambda body: VERDICTS[text_of(body).rsplit("\nAnswer: ", 1)[1].split("\n")[0]])
    made.key = KEY
    yield made
    made.close()
    gc.collect()


@pytest.fixture
def place(tmp_path):
    """SimpleVQA and MM-Vet, and answers to both."""
    for name in ("simplevqa", "mmvet"):
        write_columns(tmp_path / "data" / name / FILES[name][0], FILES[name][1])
    for name, answers in (
        ("simplevqa", {"1": "Ada", "2": "李白", "3": "Paris"}),
        ("mmvet", {"v1_0": "x is -1", "v1_1": "A pool.", "v1_2": "Ada"}),
    ):
        lines = [json.dumps({"id": id_, "answer": answer}) for id_, answer in answers.items()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def evaluate(place, *overrides) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "eval",
            overrides=[f"data_root={place / 'data'}", f"output_dir={place / 'out'}", "progress=false", *overrides],
        )
    _task(config)


def judging(server, **more) -> list[str]:
    settings = {"base_url": server.url, "model": "judge-1", "api_key_env": "PLANTED_KEY", "retry_seconds": 0.01} | more
    return ["use_llm_judge=true", *(f"judge.{name}={value}" for name, value in settings.items())]


def summary(place) -> dict:
    return json.loads((place / "out" / "summary.json").read_text())


def test_a_judged_evaluation_says_who_judged_how_much_and_for_what(server, place, capsys):
    server.faults = [Fault(500), Fault(429, "{}", {"Retry-After": "0"})]
    prices = {"input_price": 1, "output_price": 2}
    evaluate(place, "benchmarks=[simplevqa]", f"answers={place}/simplevqa.jsonl", *judging(server, **prices))
    told = capsys.readouterr().out
    line = "simplevqa, judged by judge-1: 3 judged, 0 of them known before, none failed; 3 requests, 30 + 6 tokens, cost 0.0000"
    assert line in told
    assert "judged_f1" in told
    figures = summary(place)["benchmarks"]["simplevqa"]
    assert (figures["metric"], figures["protocol"]) == ("judged_f1", "lmms-eval")
    assert figures["score"] == pytest.approx(200 / 3, abs=0.01)
    assert figures["judge"] == {
        "model": "judge-1", "prompts": figures["judge"]["prompts"], "temperature": 0, "max_tokens": 1024,
    }  # fmt: skip
    assert figures["judging"] == {
        "endpoint": server.url, "judged": 3, "cached": 0, "failed": 0, "by_rule": 0, "unanswered": 0, "requests": 3,
        "prompt_tokens": 30, "completion_tokens": 6, "served": ["judge-1-served"], "cost": 4.2e-05,
    }  # fmt: skip
    written = (place / "out" / "summary.md").read_text()
    assert line in written
    assert f"prompts factual-attempt/1 `{figures['judge']['prompts']['factual-attempt/1']}`" in written
    assert "judge-1" in (place / "out" / "report.html").read_text()
    assert len(server.requests) == 5
    for path in place.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in told


def test_old_answers_are_judged_without_a_model_and_only_once(server, place, capsys):
    evaluate(place, "benchmarks=[simplevqa]", f"answers={place}/simplevqa.jsonl")
    assert summary(place)["benchmarks"]["simplevqa"]["metric"] == "exact_match"
    before = summary(place)["checkpoint"]
    for _ in range(2):
        evaluate(place, "benchmarks=[simplevqa]", "rescore=true", *judging(server))
    assert len(server.requests) == 3
    assert "3 judged, 3 of them known before, none failed; 0 requests" in capsys.readouterr().out
    assert summary(place)["benchmarks"]["simplevqa"]["metric"] == "judged_f1"
    assert summary(place)["checkpoint"] == before, "what was evaluated is still known"
    evaluate(place, "benchmarks=[simplevqa]", "rescore=true")
    figures = summary(place)["benchmarks"]["simplevqa"]
    assert figures["metric"] == "exact_match"
    assert figures["judge"] is None
    assert "judging" not in figures


def test_failed_judgements_are_shown_and_asked_by_the_next_run(server, place, capsys):
    server.always = Fault(503)
    options = ["benchmarks=[simplevqa]", *judging(server, retries=0)]
    evaluate(place, f"answers={place}/simplevqa.jsonl", *options)
    assert "0 judged, 0 of them known before, 3 FAILED" in capsys.readouterr().out
    server.always = None
    evaluate(place, f"answers={place}/simplevqa.jsonl", *options)
    assert "3 judged, 0 of them known before, none failed" in capsys.readouterr().out


def test_what_only_a_judge_can_score_is_refused_or_kept_for_later(server, place, capsys, caplog):
    asked = ["benchmarks=[mmvet,simplevqa]", f"answers={place}/mmvet.jsonl"]
    with pytest.raises(ConfigError, match="benchmarks: mmvet: no score without a judge. Set use_llm_judge=true"):
        evaluate(place, *asked)
    assert not (place / "out").exists()
    evaluate(place, "benchmarks=[mmvet]", asked[1], "use_llm_judge=later")
    assert "mmvet: 3 answers are kept, and have no score yet. Judge them with rescore=true" in caplog.text
    assert summary(place)["benchmarks"] == {}
    server.reply = lambda body: "0.5"
    evaluate(place, "benchmarks=[mmvet]", "rescore=true", *judging(server))
    figures = summary(place)["benchmarks"]["mmvet"]
    assert (figures["score"], figures["metric"], figures["n"]) == (50.0, "judged_score", 3)
    with pytest.raises(ConfigError, match="use_llm_judge=perhaps: choose true, false or later"):
        evaluate(place, *asked, "use_llm_judge=perhaps")


def test_all_benchmarks_are_those_that_can_be_scored(caplog):
    from omegaconf import OmegaConf

    from tests.evaluation.benchmarks.test_the_twelve import make
    from vlmkit.cli.judging import without_unscorable

    benchmarks = [make(name, "nowhere") for name in ("gqa", "llava_in_the_wild", "mmvet")]
    config = OmegaConf.create({"use_llm_judge": False, "benchmarks": "all"})
    assert [one.name for one in without_unscorable(benchmarks, config)] == ["gqa"]
    assert "llava_in_the_wild, mmvet: no score without a judge; left out." in caplog.text
    config.use_llm_judge = True
    assert len(without_unscorable(benchmarks, config)) == 3


def test_what_a_judge_has_no_say_in_is_scored_by_rule(server, place, caplog):
    write_hub(place / "data", "ocrbench")
    (place / "ocr.jsonl").write_text('{"id": "0", "answer": "centre"}\n')
    with caplog.at_level(logging.INFO):
        evaluate(place, "benchmarks=[ocrbench]", f"answers={place}/ocr.jsonl", *judging(server))
    assert "Scored by rule, where a judge has no say: ocrbench." in caplog.text
    assert server.requests == []
    assert summary(place)["benchmarks"]["ocrbench"]["metric"] == "containment"


def test_a_benchmark_that_needs_a_judge_is_no_validation(tmp_path):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=["validate.benchmarks=[mmvet]", "run_dir=x"])
    told = "validate.benchmarks: mmvet has no score without a judge, and none is asked while training"
    with pytest.raises(ConfigError, match=told):
        live_benchmarks(config, tmp_path, module=None, processor=None, heed=lambda: None)


def test_a_judge_without_an_address_is_asked_for(place):
    with pytest.raises(ConfigError, match=r"judge\.base_url, judge\.model must be given"):
        evaluate(place, "benchmarks=[simplevqa]", f"answers={place}/simplevqa.jsonl", "use_llm_judge=true")


def test_a_wrong_key_is_told_by_the_command_without_it(server, place):
    server.key = "another"
    output = run(
        "eval", f"data_root={place}/data", f"output_dir={place}/out", "benchmarks=[simplevqa]",
        f"answers={place}/simplevqa.jsonl", *judging(server, concurrency=1), status=1,
    )  # fmt: skip
    assert "vlmkit-eval: judge: " in output
    assert (
        "answered 401: Incorrect API key provided: Bearer *** Give another key: the one in the environment variable PLANTED_KEY"
        in output
    )
    assert KEY not in output
    assert "Traceback" not in output
    assert len(server.requests) == 1
    assert len((place / "out/simplevqa/records.jsonl").read_text().splitlines()) == 3


def test_a_served_model_is_evaluated_without_a_checkpoint(server, place):
    write_hub(place / "data", "realworldqa")
    server.reply = lambda body: "B" if "A. A dog" in text_of(body) else "Downhill"
    options = [
        "backend=server", f"backend.base_url={server.url}", "backend.model=served", "backend.api_key_env=PLANTED_KEY",
        f"data_root={place}/data", f"output_dir={place}/out", "benchmarks=[realworldqa]", "max_new_tokens=5",
    ]  # fmt: skip
    output = run("eval", *options, "progress=false")
    assert "realworldqa  66.7 ± 33.3" in output
    assert "HTTP Request" not in output, "nobody wants to read every request"
    told = summary(place)["checkpoint"]
    assert told["path"] == f"served at {server.url}"
    assert told["weights"].startswith("not known")
    assert [body["max_tokens"] for body in server.requests] == [5, 5]
    assert all(body["messages"][0]["content"][0]["type"] == "image_url" for body in server.requests)
    run("eval", *options, "progress=false")
    assert len(server.requests) == 2, "answered once is answered"
    for path in place.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_the_drawn_shapes_can_be_asked_of_a_served_model(server, tmp_path, capsys):
    server.reply = lambda body: "red"
    evaluate(
        tmp_path, "data_root=null", "backend=server", f"backend.base_url={server.url}", "backend.model=served",
        "backend.api_key_env=PLANTED_KEY", "max_samples_per_benchmark=6",
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "out/shapes/records.jsonl").read_text().splitlines()]
    assert len(records) == len(server.requests) == 6
    assert {record["answer"] for record in records} == {"red"}
    assert all(record["outcome"] == ("right" if record["expected"] == "red" else "wrong") for record in records)


def test_a_checkpoint_and_a_served_model_are_one_too_many(server, tmp_path):
    served = ["backend=server", f"backend.base_url={server.url}", "backend.model=x"]
    with pytest.raises(ConfigError, match="ckpt=runs/x: the chosen backend= asks a served model. Leave ckpt= out"):
        evaluate(tmp_path, *served, "ckpt=runs/x")
    with pytest.raises(ConfigError, match=r"backend\.model must be given"):
        evaluate(tmp_path, *served[:2])


def test_a_server_that_is_not_there_is_told(server, tmp_path):
    server.close()
    with pytest.raises(VlmkitError, match="backend: .*Start a server there"):
        evaluate(
            tmp_path, "backend=server", f"backend.base_url={server.url}", "backend.model=x", "backend.retries=1",
            "backend.retry_seconds=0", "data_root=null",
        )  # fmt: skip
