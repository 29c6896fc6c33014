"""A score always carries what made it: prompt, hashes, decoding, protocol, parse rate, n; and it moves with the protocol."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import write_hub
from vlmkit.evaluation import provenance
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.report import write_reports
from vlmkit.evaluation.runner import run_answers, run_benchmark
from vlmkit.generation.hf_backend import HFBackend
from vlmkit.pages.report import write_report

ANSWERS = {"201": "Yes.", "202": "Dog", "203": "no"}


def test_the_same_answers_score_differently_by_protocol_and_say_so(tmp_path):
    write_hub(tmp_path, "gqa")
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "answer": answer}) + "\n" for id_, answer in ANSWERS.items()))
    answers, keys = FileAnswers(path), set()
    for protocol, score in (("lmms-eval", 66.6667), ("vlmevalkit", 33.3333)):
        benchmark = make("gqa", tmp_path, protocol=protocol)
        records = run_answers(benchmark, answers, settings(tmp_path))
        figures = aggregate(benchmark, records)
        summary = json.loads(
            write_reports(tmp_path / protocol, checkpoint=answers.identity, benchmarks={"gqa": figures}).read_text()
        )
        told = summary["benchmarks"]["gqa"]
        assert (told["score"], told["protocol"], told["metric"]) == (score, protocol, "exact_match")
        assert (told["n"], told["parsed"]) == (3, 0.6667)  # the third row has no image: failed, never left out
        assert summary["checkpoint"]["answers"] == answers.identity["answers"]
        assert {record["prompt"] for record in records if record["prompt"]} == {
            "Is it red?\nAnswer the question using a single word or phrase.",
            "What is there?\nAnswer the question using a single word or phrase.",
        }
        keys |= {record["key"] for record in records}
    assert len(keys) == 2  # neither protocol can take the other's records


@pytest.fixture
def evaluated(tiny, tmp_path):
    """A benchmark answered by the tiny model, with its summary, table and page."""
    backend = HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1)
    benchmark, how = make("gqa", write_hub(tmp_path, "gqa")), settings(tmp_path)

    def evaluate(folder, **changes):
        here = replace(how, output_dir=folder, params=replace(how.params, **changes))
        records = run_benchmark(benchmark, backend, here)
        made = provenance.asked_with(backend, here.params)
        made |= provenance.scored_with(records, protocol=benchmark.protocol, preset="house")
        figures = {"gqa": made | aggregate(benchmark, records)}
        write_reports(folder, checkpoint=backend.identity, benchmarks=figures)
        page = write_report(
            folder, checkpoint=backend.identity, figures=figures, records={"gqa": records}, benchmarks=[benchmark],
            max_pictures=1,
        )  # fmt: skip
        row = json.loads((folder / "summary.json").read_text())["benchmarks"]["gqa"]
        return row, (folder / "summary.md").read_text(), page.read_text()

    return evaluate, backend


def test_a_result_row_always_carries_what_made_it(evaluated, tmp_path):
    evaluate, backend = evaluated
    row, text, page = evaluate(tmp_path / "a")
    limits = backend.processor.limits()
    assert row["n"] == 3
    assert row["preset"] == "house"
    assert row["protocol"] == "lmms-eval"
    assert row["backend"] == "hf"
    assert row["template"] == backend.processor.template_hash[:12]
    assert row["pixel_limits"] == limits
    assert {"strategy": "greedy", "max_new_tokens": 4, "dtype": "float32"}.items() <= row["decoding"].items()
    assert row["parser"] == provenance.parser_version()
    assert row["judge"] is None
    assert row["parse_failures"] == round(row["outcomes"].get("unparsed", 0) / 3, 4)
    made = text.split("## How these were made")[1]
    for told in (
        row["prompt_id"], row["template"], f"image_max_pixels {limits['image_max_pixels']}", "max_new_tokens 4", row["parser"],
        "house", "| none | 3 |",
    ):  # fmt: skip
        assert told in made, told
    assert '"prompt_id":"' + row["prompt_id"] in page
    assert '"template":"' + row["template"] in page


def test_rows_made_otherwise_say_so(evaluated, tmp_path):
    evaluate, _ = evaluated
    one, other = evaluate(tmp_path / "a")[0], evaluate(tmp_path / "b", max_new_tokens=2)[0]
    assert one["decoding"] != other["decoding"]
    assert {key for key in one if key not in other} == set()
    assert one["prompt_id"] == other["prompt_id"]
