"""What is missing is told for every benchmark, before a model is loaded."""

from __future__ import annotations

import pytest

from tests.evaluation.benchmarks.test_the_twelve import make
from tests.evaluation.real_columns import write_hub
from tests.training.conftest import run
from vlmkit.cli.available import with_data
from vlmkit.errors import ConfigError


@pytest.fixture
def some(tmp_path):
    """One benchmark with its data, one without, one with the data of another."""
    write_hub(tmp_path / "data", "chartqa")
    write_hub(tmp_path / "data", "seed")
    (tmp_path / "data" / "seed").rename(tmp_path / "data" / "ocrbench")
    return [make(name, tmp_path / "data") for name in ("ai2d", "chartqa", "ocrbench")]


def test_of_those_named_every_fault_is_told(some):
    with pytest.raises(ConfigError) as caught:
        with_data(some, asked_for_all=False)
    first, ai2d, ocrbench = str(caught.value).splitlines()
    assert first == (
        "2 of 3 benchmarks cannot be asked. Download their data, or leave them out by benchmarks=[chartqa]."
    )
    assert ai2d.startswith("  ai2d: data_root=")
    assert ai2d.endswith("Download lmms-lab-encoder/ai2d (split test) there.")
    assert "  ocrbench: " in ocrbench
    assert "lacks the columns" in ocrbench


def test_of_all_those_that_are_there_are_asked(some, caplog):
    assert [one.name for one in with_data(some, asked_for_all=True)] == ["chartqa"]
    assert "2 of 3 benchmarks cannot be asked and are left out; asked are chartqa." in caplog.text
    assert with_data(some[1:2], asked_for_all=True) == some[1:2]


def test_one_alone_is_told_plainly(some):
    with pytest.raises(ConfigError, match=r"^data_root=.*no Parquet files for ai2d"):
        with_data(some[:1], asked_for_all=False)


def test_all_without_data_names_every_benchmark_and_asks_what_is_drawn(tmp_path, tiny):
    output = run(
        "eval", f"ckpt={tiny.vision_language}", "benchmarks=all", f"data_root={tmp_path}", f"output_dir={tmp_path / 'out'}",
        "max_samples_per_benchmark=2", "max_new_tokens=2", "progress=false",
    )  # fmt: skip
    for name in ("ai2d", "gqa", "mmmu", "mvbench", "videomme", "vizwiz"):
        assert f"\n  {name}: " in output
    assert "asked are shapes." in output
    assert "Traceback" not in output
    assert (tmp_path / "out" / "shapes" / "records.jsonl").is_file()
