"""A score always carries what made it: prompt, hashes, decoding, protocol, parse rate, n; and it moves with the protocol."""

from __future__ import annotations

import json

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import write_hub
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.answered import FileAnswers
from vlmkit.evaluation.report import write_reports
from vlmkit.evaluation.runner import run_answers

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
