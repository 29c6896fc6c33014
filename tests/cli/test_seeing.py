"""Loggers by name, the picture and the table at the end."""

from __future__ import annotations

import csv
import json
import re

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.training import forked
from tests.training.conftest import small, write_manifest
from vlmkit.cli.telling import make_loggers
from vlmkit.errors import ConfigError
from vlmkit.pages.curves import draw_curves


def test_a_run_tells_its_loggers_and_ends_with_a_table_and_a_picture(tmp_path):
    manifest = write_manifest(tmp_path, 8)
    told = forked.run(
        *small(manifest, tmp_path / "run", "logger=[csv,tensorboard,mlflow]"), "optim.lr=1e-4", output=tmp_path / "out"
    )
    run_dir = tmp_path / "run"
    with (run_dir / "metrics.csv").open() as file:
        written = list(csv.DictReader(file))
    steps = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    assert [float(row["train/loss"]) for row in written] == pytest.approx([line["loss"] for line in steps])
    assert "train/grad_norm/merger" in written[0]
    assert "train/loss_by_source/manifest" in written[0]
    assert list((run_dir / "tensorboard").glob("events.*"))
    assert (run_dir / "mlflow.db").stat().st_size > 0
    report = json.loads((run_dir / "report.json").read_text())["forecast"]
    assert report["followed"]["steps"] == report["predicted"]["num_steps"] == 4
    assert re.search(
        r"\nforecast +4 steps \S+ m?s forecast, \S+ m?s taken; an epoch \S+ m?s, \S+ m?s; peak memory ", told
    )
    for words in ("trained merger ", "8 samples, ", "tokens/s", "% waiting for data", str(run_dir / "curves.png")):
        assert words in told
    with Image.open(run_dir / "curves.png") as picture:
        assert picture.size == (960, 960)
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20, "something is drawn"


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_logger_whose_package_is_missing_is_answered_with_what_to_install(name, package, monkeypatch):
    """The import itself fails, as it would where the package is absent."""
    import sys

    import lightning.pytorch.loggers as loggers

    class Missing:
        def __init__(self, **_):
            raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(loggers, "Missing", Missing, raising=False)
    assert sys.modules["lightning.pytorch.loggers"] is loggers
    node = OmegaConf.create({name: {"_target_": "lightning.pytorch.loggers.Missing"}})
    with pytest.raises(
        ConfigError, match=rf"logger={name}: it needs the package {package}.*pip install 'vlmkit\[{package}\]'"
    ):
        make_loggers(node)


def test_an_empty_log_draws_nothing(tmp_path):
    assert draw_curves([], [], tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
