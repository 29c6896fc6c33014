"""A crash in the middle costs at most what was being answered; a bad case costs itself; what is there is not asked again."""

from __future__ import annotations

import dataclasses

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import write_hub
from vlmkit.evaluation.records import read_records
from vlmkit.evaluation.runner import run_benchmark
from vlmkit.generation.backend import Generation


class Parrot:
    """Answers `14`; breaks at its n-th question, as a machine does."""

    identity = {"weights": "w"}

    def __init__(self, breaks_at=None):
        self.asked = 0
        self.breaks_at = breaks_at

    def generate(self, conversations, params):
        answers = []
        for _ in conversations:
            self.asked += 1
            if self.asked == self.breaks_at:
                raise MemoryError("gone")
            answers.append(Generation(text="14", num_tokens=1, seconds=0.0))
        return answers


@pytest.fixture
def run(tmp_path):
    """ChartQA with two good rows and one without an image, a case a batch."""
    write_hub(tmp_path, "chartqa")
    how = settings(tmp_path)
    how = dataclasses.replace(how, params=dataclasses.replace(how.params, batch_size=1))
    benchmark = make("chartqa", tmp_path)
    return benchmark, how


def test_what_was_answered_is_kept_and_not_asked_again(run):
    benchmark, how = run
    with pytest.raises(MemoryError):
        run_benchmark(benchmark, Parrot(breaks_at=2), how)
    kept = read_records(how.path(benchmark))
    assert [(record["id"], record["outcome"]) for record in kept] == [("0", "right")]
    again = Parrot()
    records = run_benchmark(benchmark, again, how)
    assert again.asked == 1
    whole = run_benchmark(benchmark, Parrot(), dataclasses.replace(how, output_dir=how.output_dir / "whole"))
    assert records == whole


def test_a_case_without_its_image_is_recorded_as_failed_with_file_and_row(run):
    benchmark, how = run
    _, gone, _ = run_benchmark(benchmark, Parrot(), how)
    assert (gone["outcome"], gone["score"]) == ("failed", 0.0)
    assert "chartqa/test-00000-of-00001.parquet:2: its image" in gone["error"]
