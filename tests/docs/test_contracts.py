"""The files that other programs read hold the fields that the README lists, with their schema."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.training.conftest import run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("### Files that other programs may read", 1)[1].split("\n## ", 1)[0]
ROWS = re.findall(r"^\| `([^`]+)`[^|]* \| (\S+) \| (.*) \|$", SECTION, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of one step on drawn shapes, evaluated on two questions."""
    run_dir = tmp_path_factory.mktemp("run")
    run("train", f"run_dir={run_dir}", "trainer.max_steps=1", "data.limit=16", "data.batch_size=8", "log.progress=false",
        "log.every_n_steps=1", "data.validation=0.1")  # fmt: skip
    broken = tmp_path_factory.mktemp("broken")
    run("train", f"run_dir={broken}", "trainer.max_steps=3", "data.limit=8", "data.batch_size=2", "optim.lr=1e30",
        "optim.warmup_ratio=0", "log.progress=false", status=1)  # fmt: skip
    (broken / "suspects.jsonl").rename(run_dir / "suspects.jsonl")
    run("eval", f"ckpt={run_dir}", "max_samples_per_benchmark=2", "max_new_tokens=4", "progress=false")
    return run_dir


def test_the_section_lists_every_file():
    assert [name for name, _, _ in ROWS] == [
        "train.jsonl",
        "suspects.jsonl",
        "validation.jsonl",
        "report.json",
        "hf/vlmkit.json",
        "eval/summary.json",
        "eval/<benchmark>/metrics.json",
        "eval/<benchmark>/asked.json",
        "eval/<benchmark>/records.jsonl",
    ]


@pytest.mark.parametrize(("name", "schema", "fields"), ROWS, ids=[row[0] for row in ROWS])
def test_a_file_holds_the_fields_that_the_readme_lists(finished, name, schema, fields):
    text = (finished / name.replace("<benchmark>", "shapes")).read_text(encoding="utf-8")
    content = json.loads(text.splitlines()[0] if name.endswith(".jsonl") else text)
    wanted = set(re.findall(r"`(\w+)`", fields))
    if schema != "-":
        assert content.pop("schema") == schema.strip("`")
    assert set(content) == wanted


def test_the_summary_s_figures_are_those_of_the_metrics(finished):
    metrics = json.loads((finished / "eval" / "shapes" / "metrics.json").read_text())
    summary = json.loads((finished / "eval" / "summary.json").read_text())
    assert summary["benchmarks"]["shapes"] == {
        key: value for key, value in metrics.items() if key not in ("schema", "benchmark")
    }
