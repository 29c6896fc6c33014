"""ChartQA and RealWorldQA on small Parquet files with the real columns, and on the golden cases of the references."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmkit.errors import ConfigError, DataError
from vlmkit.evaluation.benchmark import BadCase, Benchmark, Case
from vlmkit.evaluation.benchmarks.chartqa import ChartQA
from vlmkit.evaluation.benchmarks.realworldqa import RealWorldQA

GOLDEN = Path(__file__).parents[2] / "golden" / "scoring_cases.jsonl"
HUB = {"chartqa": (ChartQA, "lmms-lab-encoder/ChartQA"), "realworldqa": (RealWorldQA, "lmms-lab-encoder/RealWorldQA")}


def make(name, data_root, *, protocol="lmms-eval", prompt_suffix=None):
    kind, hub_id = HUB[name]
    return kind(protocol=protocol, prompt_suffix=prompt_suffix, hub_id=hub_id, split="test", data_root=data_root)


def png(color="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def data_root(tmp_path):
    def write(name, **columns):
        folder = tmp_path / name
        folder.mkdir()
        images = [
            {"bytes": png(), "path": "a.png"},
            {"bytes": None, "path": "b.png"},
            {"bytes": png("blue"), "path": None},
        ]
        pq.write_table(pa.table({"image": images, **columns}), folder / "test-00000-of-00001.parquet")

    write(
        "chartqa",
        type=["human_test", "human_test", "augmented_test"],
        question=["How many?", "Gone?", "Which year?"],
        answer=["14", "1", "2020"],
    )
    options = (
        "\nA. A dog\nB. A cat\nPlease answer directly with only the letter of the correct option and nothing else."
    )
    write("realworldqa", question=[f"What is it?{options}", "Gone?", "Where to? "], answer=["B", "A", "Downhill"])
    return tmp_path


def test_chartqa_rows_become_cases_and_bad_ones_are_told(data_root):
    benchmark = make("chartqa", data_root)
    assert isinstance(benchmark, Benchmark)
    first, gone, third = benchmark.cases()
    assert isinstance(first, Case)
    assert first.prompt == "How many?\nAnswer the question with a single word."
    assert (first.id, first.expected, first.category) == ("0", "14", "human")
    assert isinstance(gone, BadCase)
    assert gone.id == "1"
    assert "test-00000-of-00001.parquet:2: its image holds" in gone.reason
    assert isinstance(third, Case)
    assert third.category == "augmented"
    assert [benchmark.score(first, text).outcome for text in ("14", "14.5", "15", "<think>15</think>14")] == [
        "right",
        "right",
        "wrong",
        "right",
    ]


def test_prompts_follow_protocol_and_suffix(data_root):
    assert next(make("chartqa", data_root, protocol="vlmevalkit").cases()).prompt.endswith("a single word or phrase.")
    assert next(make("chartqa", data_root, prompt_suffix=" Brief!").cases()).prompt == "How many? Brief!"
    assert next(make("realworldqa", data_root, prompt_suffix="Think.").cases()).prompt.endswith("B. A cat\nThink.")


def test_realworldqa_reads_its_options_and_scores_both_kinds(data_root):
    for protocol in ("lmms-eval", "vlmevalkit"):
        benchmark = make("realworldqa", data_root, protocol=protocol)
        letters, _, short = benchmark.cases()
        assert isinstance(letters, Case)
        assert isinstance(short, Case)
        assert dict(letters.options) == {"A": "A dog", "B": "A cat"}
        assert benchmark.score(letters, "B").outcome == "right"
        assert benchmark.score(letters, "(A)").outcome == "wrong"
        assert benchmark.score(letters, "").outcome == "unparsed"
        assert benchmark.score(short, "downhill.").outcome == "right"
        assert benchmark.score(short, "uphill").outcome == "wrong"
    assert make("realworldqa", data_root, protocol="vlmevalkit").score(letters, "a cat").outcome == "right"
    assert make("realworldqa", data_root).score(letters, "cats").outcome == "unparsed"


@pytest.mark.parametrize("name", ["chartqa", "realworldqa"])
def test_golden_cases_agree_through_the_benchmark(name, tmp_path):
    checked = 0
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if told["benchmark"] != name:
            continue
        benchmark = make(name, tmp_path, protocol=told["source"])
        case = Case(id="x", conversation=None, prompt="", expected=told["answer"], options=told.get("options") or {})
        if "<think>" in told["prediction"]:
            continue  # the reference removes reasoning before its scorer; the cases were made without
        assert benchmark.score(case, told["prediction"]).value == told["expected"], told
        checked += 1
    assert checked >= 45


def test_missing_columns_and_files_are_named(tmp_path):
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="lacks the columns answer, image, type; found question"):
        list(make("chartqa", tmp_path).cases())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no Parquet files for chartqa"):
        list(make("chartqa", tmp_path / "empty").cases())
    (tmp_path / "empty" / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(make("chartqa", tmp_path / "empty").cases())


def test_unknown_protocols_are_refused():
    with pytest.raises(ValueError, match="benchmark_options.chartqa.protocol must be one of lmms-eval, vlmevalkit"):
        make("chartqa", None, protocol="house")
