"""`vlmkit-eval` as its users run it: a killed run, another model at the same path, scoring again, wrong turns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.evaluation.real_columns import PLANTED, png, write_hub
from tests.training.conftest import ranks_below, run, start
from vlmkit.cli.sharing import find_place

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

FIELDS = {
    "key",
    "id",
    "benchmark",
    "prompt",
    "media",
    "answer",
    "extracted",
    "expected",
    "score",
    "outcome",
    "tokens",
    "seconds",
}
QUICK = ["max_new_tokens=3", "batch_size=4", "progress=false"]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A copy of its own, since a test changes the weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny.vision_language, directory)
    return directory


def records(output_dir):
    lines = (output_dir / "shapes" / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_killed_evaluation_goes_on_and_equals_a_whole_one(model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = run("eval", f"ckpt={model}", f"output_dir={whole}", "max_samples_per_benchmark=64", *QUICK)
    assert "text only guesser" in output
    assert (whole / "report.html").stat().st_size > 50_000
    process = start("eval", f"ckpt={model}", f"output_dir={killed}", "max_samples_per_benchmark=64", *QUICK)
    path = killed / "shapes" / "records.jsonl"
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(path.read_text().splitlines())
    path.write_text(path.read_text() + '{"torn')
    output = run("eval", f"ckpt={model}", f"output_dir={killed}", "max_samples_per_benchmark=64", *QUICK)
    assert 0 < before <= 64
    assert "cut back to its last whole record" in output
    assert records(killed) == records(whole)
    assert len(records(whole)) == 64
    assert all(record.keys() >= FIELDS - {"seconds"} for record in records(whole))
    summary = json.loads((whole / "summary.json").read_text())
    told = summary["benchmarks"]["shapes"]
    right = sum(record["score"] for record in records(whole))
    assert told["score"] == pytest.approx(100 * right / 64)
    assert told["n"] == 64
    assert told["baselines"]["text_only_guesser"] < 45


@pytest.mark.slow
def test_two_ranks_equal_one_and_a_killed_rank_ends_all_and_loses_nothing(model, tmp_path):
    alone, two, killed = (tmp_path / name for name in ("alone", "two", "killed"))
    settings = [f"ckpt={model}", "max_samples_per_benchmark=64", *QUICK]
    run("eval", f"output_dir={alone}", *settings)
    output = run("eval", f"output_dir={two}", "devices=2", *settings)
    assert records(two) == records(alone)
    assert output.count("Every answer:") == 1
    assert sorted(path.name for path in (two / "shapes").iterdir()) == ["asked.json", "metrics.json", "records.jsonl"]
    ours, theirs = (json.loads((place / "summary.json").read_text())["benchmarks"]["shapes"] for place in (two, alone))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}

    process = start("eval", f"output_dir={killed}", "devices=2", *settings)
    part = killed / "shapes" / "records.rank-1.jsonl"
    while not part.exists() or not part.stat().st_size:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    (other,) = ranks_below(process.pid)
    os.kill(other, signal.SIGKILL)
    dead = time.monotonic()
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - dead < 15
    assert process.returncode == 1
    assert "rank 1 ended without a word" in output.splitlines()[0]
    assert 0 < len(part.read_text().splitlines()) < 32
    run("eval", f"output_dir={killed}", "devices=1", *settings)
    assert records(killed) == records(alone)


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        (1, {}, (0, 1, 0, False, False)),
        (3, {}, (0, 3, 0, True, False)),
        (1, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1, False, True)),
        (1, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0, False, False)),
        (1, {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, (5, 8, 1, True, True)),
        (1, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1, 0, False, False)),  # sbatch, and no srun
    ],
)
def test_torchrun_and_srun_are_heard(devices, environment, expected):
    place = find_place(devices, environment)
    share = place.share
    assert (share.rank, share.num_ranks, place.local_rank, place.launch is not None, place.outside) == expected


def test_other_weights_at_the_same_path_are_noticed(model, tmp_path):
    settings = [f"ckpt={model}", f"output_dir={tmp_path}", "max_samples_per_benchmark=4", *QUICK]
    run("eval", *settings)
    first = records(tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.language_model.norm.weight"] *= -1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    output = run("eval", *settings)
    assert "are not used again" in output
    assert {record["key"] for record in records(tmp_path)}.isdisjoint({record["key"] for record in first})
    assert (tmp_path / "shapes" / "records.old-1.jsonl").is_file()


def test_scoring_again_needs_no_model(model, tmp_path):
    run("eval", f"ckpt={model}", f"output_dir={tmp_path}", "max_samples_per_benchmark=4", *QUICK)
    path = tmp_path / "shapes" / "records.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines()]
    told[0] |= {"answer": f" {told[0]['expected'].upper()}. "}
    path.write_text("".join(json.dumps(record) + "\n" for record in told))
    before = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["shapes"]
    output = run("eval", "ckpt=nowhere", f"output_dir={tmp_path}", "rescore=true", "max_samples_per_benchmark=4")
    after = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["shapes"]
    made = ("preset", "prompt_id", "backend", "template", "pixel_limits", "decoding", "parser", "judge")
    assert {name: after[name] for name in made} == {name: before[name] for name in made}
    assert (after["preset"], after["backend"], len(after["template"])) == ("house", "hf", 12)
    assert records(tmp_path)[0]["outcome"] == "right"
    assert "25.0" in output or "50.0" in output or "75.0" in output or "100.0" in output


def test_the_twelve_run_through_the_model_and_answers_of_a_file_are_scored(model, tmp_path):
    for name in PLANTED:
        write_hub(tmp_path / "data", name)
    names = f"benchmarks=[{','.join(PLANTED)}]"
    data = f"data_root={tmp_path / 'data'}"
    run("eval", f"ckpt={model}", names, data, f"output_dir={tmp_path / 'model'}", *QUICK)
    summary = json.loads((tmp_path / "model" / "summary.json").read_text())
    assert list(summary["benchmarks"]) == list(PLANTED)
    for name, figures in summary["benchmarks"].items():
        lines = (tmp_path / "model" / name / "records.jsonl").read_text().splitlines()
        assert figures["n"] == len(lines) > 1
        assert sum("error" not in json.loads(line) for line in lines) == figures["n"] - (
            name in ("gqa", "chartqa", "realworldqa")
        )
    answers = tmp_path / "answers.jsonl"
    given = PLANTED["ocrbench"][0]
    answers.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in given.items()))
    output = run(
        "eval",
        f"answers={answers}",
        "benchmarks=[ocrbench]",
        data,
        f"output_dir={tmp_path / 'answers'}",
        "verbose=true",
    )
    assert "66.7 ± 33.3" in output
    assert "expected ['CENTRE'], answered 'It says Centre': right" in output


def test_a_benchmark_of_one_s_own_takes_ten_lines(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        '{"id": "1", "image": "1.png", "question": "Which?", "options": ["cat", "dog"], "answer": "B"}\n'
        '{"id": "2", "image": "1.png", "question": "Which?", "options": ["cat", "dog"], "answer": "A"}\n'
    )
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "mine.yaml").write_text(
        README.split("# mine.yaml", 1)[1].split("```", 1)[0].replace("/data", str(tmp_path))
    )
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "answer": "The dog"}\n{"id": "2", "answer": "B."}\n')
    settings = [f"benchmarks=[{tmp_path}/mine.yaml]", f"answers={tmp_path}/answers.jsonl", f"output_dir={tmp_path}/out"]
    run("eval", *settings)
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())["benchmarks"]["mine"]
    assert (figures["score"], figures["metric"]) == (50.0, "choice")


def test_the_rows_of_a_manifest_are_asked_by_its_name(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "A dog."}]
    rows = [
        {"id": "1", "image": "1.png", "conversations": turns},
        {"image": "1.png", "conversations": turns},
        {"id": "3", "image": "1.png", "conversations": turns + turns[1:]},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "answers.jsonl").write_text(
        '{"id": "1", "answer": "a dog"}\n{"id": "line-2", "answer": "It is a dog"}\n'
    )
    settings = [f"benchmarks=[{tmp_path}/mine.jsonl]", f"answers={tmp_path}/answers.jsonl"]
    for rule, score in (("exact_match", 100 / 3), ("contains", 200 / 3)):
        run("eval", *settings, f"output_dir={tmp_path / rule}", f"benchmark_options.mine.rule={rule}")
        figures = json.loads((tmp_path / rule / "summary.json").read_text())["benchmarks"]["mine"]
        assert (round(figures["score"], 3), figures["metric"], figures["n"]) == (round(score, 3), rule, 3)
    told = [json.loads(line) for line in (tmp_path / "contains" / "mine" / "records.jsonl").read_text().splitlines()]
    assert [(one["prompt"], one["expected"]) for one in told[:2]] == [("\nWhich?", "A dog.")] * 2
    assert told[2]["error"].endswith("mine.jsonl:3: has 3 turns, not a question and an answer.")


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["benchmarks=[]"], 0, "lmms-lab-encoder/ChartQA"),
        (["benchmarks=[chartq]"], 1, "Did you mean chartqa?"),
        (["benchmark_options.shapes.prompt_sufix=x"], 1, "Did you mean prompt_suffix?"),
        (["ckpt=nowhere"], 1, "ckpt=nowhere: no model there"),
        (["use_llm_judge=true"], 1, "judge.base_url, judge.model must be given"),
        (["benchmarks=[mmvet]"], 1, "mmvet: no score without a judge"),
        (["answers=gone.jsonl"], 1, "answers=gone.jsonl: no such file"),
        (["benchmarks=[gone.yaml]"], 1, "there is no file gone.yaml"),
        (["answers=x", "rescore=true"], 1, "Give one of the two"),
        (["devices=0"], 1, "devices=0: wanted a whole number of at least 1"),
        (["batch_size=0", "max_samples_per_benchmark=1"], 1, "batch_size=0: wanted a whole number of at least 1."),
        (["backend.device=gpu", "max_samples_per_benchmark=1"], 1, "backend.device=gpu: no such device. Choose auto, "),
    ],
)
def test_answers_to_wrong_turns(overrides, status, message, tmp_path):
    output = run("eval", f"output_dir={tmp_path}", *overrides, status=status)
    assert message in output
    assert "Traceback" not in output
