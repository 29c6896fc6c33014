"""Loggers by name, the picture and the table at the end."""

from __future__ import annotations

import csv
import json
import re
import struct

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
    for words in ("trained merger ", "8 samples, ", "tokens/s", "% waiting for data", str(run_dir / "curves.png")):
        assert words in told
    with Image.open(run_dir / "curves.png") as picture:
        assert picture.size == (960, 960)
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20, "something is drawn"


def test_weights_and_biases_writes_its_directory_offline(tmp_path):
    """Every logged step is in the file that `wandb sync` would send, with the figures of train.jsonl."""
    manifest = write_manifest(tmp_path, 8)
    run_dir = tmp_path / "run"
    forked.run(
        *small(manifest, run_dir, "logger=wandb", "logger.wandb.name=try", f"data.validation={manifest}"),
        output=tmp_path / "out",
        variables={"WANDB_MODE": "offline", "WANDB_DIR": "", "WANDB_SILENT": "true", "HOME": str(tmp_path)},
    )
    (written,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    steps = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    found = history(written)
    losses = {row["trainer/global_step"]: row["train/loss"] for row in found if "train/loss" in row}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in steps})
    assert any("val/loss" in row for row in found)
    assert any("val/sample-1" in name for row in found for name in row), "the pictures are named"
    assert {"train/grad_norm/merger", "train/lr/merger", "train/tokens_per_second"} <= set(found[0])


def history(path):
    """What was logged, out of a file of Weights & Biases' own format: a log of blocks, as LevelDB writes them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block, place, whole, rows = path.read_bytes(), 32768, 7, b"", []
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record.FromString(whole)
            items = record.history.item if record.WhichOneof("record_type") == "history" else ()
            if found := {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}:
                rows.append(found)
            whole = b""
    return rows


def test_weights_and_biases_that_cannot_start_is_told_before_training(tmp_path):
    manifest = write_manifest(tmp_path, 4)
    told = forked.run(
        *small(manifest, tmp_path / "run", "logger=wandb"),
        output=tmp_path / "out",
        status=1,
        variables={"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""},
    )
    assert "logger: WandbLogger could not be started" in told
    assert "WANDB_MODE=offline" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "what"), [("tensorboard", "'vlmkit[tensorboard]'"), ("mlflow", "'vlmkit[mlflow]'"), ("wandb", "wandb")]
)
def test_a_logger_whose_package_is_missing_is_answered_with_what_to_install(name, what, monkeypatch):
    """The import itself fails, as it would where the package is absent."""
    import sys

    import lightning.pytorch.loggers as loggers

    class Missing:
        def __init__(self, **_):
            raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(loggers, "Missing", Missing, raising=False)
    assert sys.modules["lightning.pytorch.loggers"] is loggers
    node = OmegaConf.create({name: {"_target_": "lightning.pytorch.loggers.Missing"}})
    with pytest.raises(
        ConfigError, match=rf"logger={name}: it needs the package {name}, .* pip install {re.escape(what)}, or choose"
    ):
        make_loggers(node)


def test_an_empty_log_draws_nothing(tmp_path):
    assert draw_curves([], [], tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
