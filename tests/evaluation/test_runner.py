"""What records hold and when they are used again: moved data keeps them, other questions do not."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make, settings
from tests.evaluation.real_columns import HUB, TSV, png, write_hub, write_tsv
from vlmkit.conversation import Conversation
from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.benchmarks.jsonl import JsonlBenchmark
from vlmkit.evaluation.comparison import compare, read_evaluation
from vlmkit.evaluation.report import write_reports
from vlmkit.evaluation.runner import run_benchmark, score_records
from vlmkit.generation.backend import Generation


class Parrot:
    """A backend that says the same to everything, and counts the questions."""

    identity = {"backend": "parrot"}

    def __init__(self, says="A"):
        self.says, self.asked = says, 0

    def generate(self, conversations: list[Conversation], params):
        self.asked += len(conversations)
        return [Generation(text=self.says, num_tokens=1, seconds=0.0) for _ in conversations]


def asked(benchmark, tmp_path) -> int:
    """How many questions a run asks, after what is there already."""
    backend = Parrot()
    run_benchmark(benchmark, backend, settings(tmp_path))
    return backend.asked


@pytest.mark.parametrize("write", [write_hub, write_tsv])
def test_moved_data_keeps_its_answers(write, tmp_path):
    write(tmp_path / "here" / "deep", "mmstar")
    num_cases = asked(make("mmstar", tmp_path / "here" / "deep"), tmp_path)
    assert num_cases >= 1
    (tmp_path / "here").rename(tmp_path / "there")
    assert asked(make("mmstar", tmp_path / "there" / "deep"), tmp_path) == 0
    assert asked(make("mmstar", tmp_path / "there" / "deep", hub_id="moved/MMStar"), tmp_path) == 0


def test_a_saved_copy_that_is_moved_keeps_its_answers(tmp_path):
    from datasets import load_dataset

    write_hub(tmp_path / "parquet", "seed")
    data = load_dataset("parquet", data_files=str(tmp_path / "parquet/seed/*.parquet"), split="train",
                        cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.save_to_disk(str(tmp_path / "a" / "seed"))
    assert asked(make("seed", tmp_path / "a"), tmp_path) == 2
    (tmp_path / "a").rename(tmp_path / "b")
    assert asked(make("seed", tmp_path / "b"), tmp_path) == 0


@pytest.mark.parametrize(
    "changed",
    [{"protocol": "lmms-eval"}, {"prompt_suffix": " Short!"}, {"split": "other"}],
    ids=lambda one: next(iter(one)),
)
def test_other_questions_are_asked_again(changed, tmp_path):
    write_hub(tmp_path, "mmstar")
    folder = tmp_path / "mmstar"
    (folder / "val-00000-of-00001.parquet").rename(folder / "rows.parquet")  # of any split
    assert asked(make("mmstar", tmp_path), tmp_path) == 3
    assert asked(make("mmstar", tmp_path), tmp_path) == 0
    assert asked(make("mmstar", tmp_path, **changed), tmp_path) == 3


def test_other_rows_are_asked_again(tmp_path, monkeypatch):
    write_hub(tmp_path, "ai2d")
    assert asked(make("ai2d", tmp_path), tmp_path) == 2
    file, columns = HUB["ai2d"]
    monkeypatch.setitem(HUB, "ai2d", (file, columns | {"question": ["Which sleeps?", "What is C?"]}))
    write_hub(tmp_path, "ai2d")
    assert asked(make("ai2d", tmp_path), tmp_path) == 2
    stem, rows = TSV["ocrbench"]
    write_tsv(tmp_path / "tsv", "ocrbench")
    assert asked(make("ocrbench", tmp_path / "tsv"), tmp_path) == 1
    monkeypatch.setitem(TSV, "ocrbench", (stem, [rows[0] | {"question": "Read it!"}]))
    write_tsv(tmp_path / "tsv", "ocrbench")
    assert asked(make("ocrbench", tmp_path / "tsv"), tmp_path) == 1


def test_settings_of_the_scorer_alone_ask_nothing_again(tmp_path):
    write_hub(tmp_path, "mmmu")
    assert asked(make("mmmu", tmp_path), tmp_path) == 3
    assert asked(make("mmmu", tmp_path, random_guess=True, seed=7), tmp_path) == 0


@pytest.mark.parametrize(
    ("name", "changed"),
    [("mathvista", {"form": "solution"}), ("textvqa", {"ocr": True}), ("textvqa", {"lower_case": False})],
)
def test_settings_of_the_prompt_ask_again(name, changed, tmp_path):
    write_hub(tmp_path, name)
    assert make(name, tmp_path).task() != make(name, tmp_path, **changed).task()
    assert make(name, tmp_path).task() == make(name, tmp_path).task()


def jsonl(folder, *, name="mine", rule="contains", questions=("one", "two")):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(n), "question": question, "answer": "A"} for n, question in enumerate(questions)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlBenchmark(name=name, path=folder / "rows.jsonl", root=None, rule=rule, prompt_suffix=None)


def test_a_file_of_one_s_own_goes_by_its_content(tmp_path):
    assert asked(jsonl(tmp_path / "a"), tmp_path) == 2
    assert asked(jsonl(tmp_path / "b", rule="exact_match"), tmp_path) == 0
    assert asked(jsonl(tmp_path / "b", questions=("one", "three")), tmp_path) == 2


class Picky(JsonlBenchmark):
    """Refuses one answer, as a scorer does whose row it does not understand."""

    refuses = "1"

    def score(self, case, answer):
        if case.id == self.refuses:
            raise ValueError("no unit is called 'furlong'")
        return super().score(case, answer)


def test_a_scorer_s_reason_stands_in_the_record_and_goes_with_its_cause(tmp_path):
    jsonl(tmp_path / "a")
    benchmark = Picky(name="mine", path=tmp_path / "a" / "rows.jsonl", root=None, rule="contains", prompt_suffix=None)
    good, bad = run_benchmark(benchmark, Parrot(), settings(tmp_path))
    assert (good["outcome"], good.get("error")) == ("right", None)
    assert (bad["outcome"], bad["error"], bad["answer"]) == (
        "failed",
        "cannot be scored: no unit is called 'furlong'",
        "A",
    )
    benchmark.refuses = "none"
    _, mended = score_records(benchmark, settings(tmp_path))
    assert (mended["outcome"], mended["error"]) == ("right", None)


class Deaf(Parrot):
    def generate(self, conversations, params):
        return [Generation(text="", num_tokens=0, seconds=0.0, error="no such file") for _ in conversations]


def test_an_error_of_the_answer_outlives_scoring_again(tmp_path):
    run_benchmark(jsonl(tmp_path / "a"), Deaf(), settings(tmp_path))
    scored = score_records(jsonl(tmp_path / "a"), settings(tmp_path))
    assert [(one["outcome"], one["error"]) for one in scored] == [("failed", "no such file")] * 2


def test_images_as_bytes_are_told_by_their_content(tmp_path):
    """Two images of equally many bytes are two clusters; one image twice is one."""
    write_hub(tmp_path, "docvqa")
    records = run_benchmark(make("docvqa", tmp_path), Parrot(), settings(tmp_path))
    assert len({record["media"][0] for record in records}) == 1
    first, second = png("red"), png("red")[:-1] + b"\x00"
    assert len(first) == len(second)
    rows = [
        {"id": str(n), "outcome": "right", "score": 1.0, "expected": "x", "media": told, "cluster": cluster, "key": "k"}
        for n, (told, cluster) in enumerate([(_told(first), ""), (_told(second), ""), (_told(first), "")])
    ]
    assert rows[0]["media"] == rows[2]["media"] != rows[1]["media"]
    assert rows[0]["media"][0].endswith(f" ({len(first)} bytes)")
    for name in ("a", "b"):
        _evaluation(tmp_path / name, rows)
    (difference,) = compare(read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "b"), seed=0)
    assert difference.num_clusters == 2
    shutil.rmtree(tmp_path / "a")
    _evaluation(tmp_path / "a", [row | {"cluster": f"page {n}"} for n, row in enumerate(rows)])
    (difference,) = compare(read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "b"), seed=0)
    assert difference.num_clusters == 3  # a grouping of the benchmark's own goes before the media


def _told(content: bytes) -> list[str]:
    from vlmkit.evaluation.benchmarks.asking import ask

    return list(ask("x", [content, "what?"], "x").media)


def _evaluation(folder, rows):
    from vlmkit.evaluation.records import replace_records

    class Drawn:
        name, metric, protocol, unit, judge, resampled = "drawn", "exact_match", "vlmkit", "percent", "no", True

        def figures(self, records):
            return {}

        def baselines(self):
            return {}

    records = [row | {"seconds": 0.0, "answer": "x", "prompt": "?", "benchmark": "drawn"} for row in rows]
    (folder / "drawn").mkdir(parents=True)
    replace_records(folder / "drawn" / "records.jsonl", records)
    write_reports(folder, checkpoint={"path": "x"}, benchmarks={"drawn": aggregate(Drawn(), records)})
