"""Resume repeats data, or skipping takes hours: the ids of all later samples are those of the plan, and nothing is read to get there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.training.conftest import REPOSITORY, environment, lines, small, write_manifest
from tests.training.recorder import recorded
from vlmkit.cli.validating import make_data
from vlmkit.config import read_config
from vlmkit.data.dataset import PackDataset
from vlmkit.data.index import Index
from vlmkit.processing.processor import load_processor

NUM_ROWS, EPOCHS, STOP = 18, 2, 3


def test_no_row_is_read_to_get_to_where_the_run_stood(corpus, processor, datamodule, monkeypatch):
    data = datamodule(corpus.write([corpus.rows["text"]] * 400), batch_size=1)
    data.prepare(processor=processor, num_epochs=2, max_packs=None, require_media=False)
    data.start_pack = 777
    read, really_read = [], Index.read
    monkeypatch.setattr(Index, "read", lambda index, row: read.append(row) or really_read(index, row))
    slots = data.steps(2, 1).slots(1)
    first = PackDataset(index=data.index, processor=processor, pixels="uint8")[slots[0]]
    assert read == first["rows"] == list(data.plan[first["pack"]].rows)
    assert first["pack"] in (777, 778)


def started(manifest, run_dir, record, ranks, *more):
    """`vlmkit-train` in a process group of its own, with every trained row written down."""
    settings = small(
        manifest,
        run_dir,
        f"trainer.max_epochs={EPOCHS}",
        "save.every_n_steps=1",
        "save.keep=0",
        f"+callbacks.rows={{_target_: tests.training.recorder.RowRecorder, directory: {record}}}",
        *(["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"] if ranks == 2 else []),
        *more,
    )
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(REPOSITORY)])
    command = [sys.executable, "-m", "vlmkit.cli.train", *settings]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finished(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def killed_after(process, checkpoint):
    """Kill a run and the ranks it started, once the checkpoint stands."""
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_other_ranks_and_trains_the_rest_once(before, after, tmp_path):
    folder, run_dir = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    manifest = write_manifest(folder, NUM_ROWS, text_only=frozenset({1, 6, 11}))
    checkpoint = run_dir / "checkpoints" / f"step-{STOP:06d}.ckpt"
    killed_after(started(manifest, run_dir, tmp_path / "first", before), checkpoint)
    for later in run_dir.glob("checkpoints/step-*.ckpt"):  # it may have come further before it died
        if later.name > checkpoint.name:
            later.unlink()
    output = finished(started(manifest, run_dir, tmp_path / "second", after, "resume_from=auto"))
    assert f"resumed from {checkpoint}" in output

    config = read_config(run_dir)
    data = make_data(config.data)
    processor = load_processor(run_dir / "hf", budget=data.budget)
    data.prepare(processor=processor, num_epochs=EPOCHS, max_packs=None, require_media=False)
    consumed = STOP * before
    rest = recorded(tmp_path / "second")
    assert sorted(line["pack"] for line in rest) == list(range(consumed, len(data.plan)))
    done = [line for line in recorded(tmp_path / "first") if line["step"] <= STOP]
    assert sorted(line["pack"] for line in done) == list(range(consumed))
    for line in done + rest:
        assert line["rows"] == list(data.plan[line["pack"]].rows)
    ids = [row for line in done + rest for row in line["rows"]]
    assert sorted(ids) == sorted(list(range(NUM_ROWS)) * EPOCHS)
    assert sum(line["samples"] for line in lines(run_dir)) == NUM_ROWS * EPOCHS
    assert [line["step"] for line in lines(run_dir)] == list(range(1, lines(run_dir)[-1]["step"] + 1))
