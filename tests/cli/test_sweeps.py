"""`vlmkit-train -m` as its users run it: one index, a process for each run, a table, and whatever befalls a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.conftest import environment, lines, run, small, start, write_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6, 11, 17}))


@pytest.fixture(scope="module")
def swept(manifest, tmp_path_factory):
    """Two runs, the first of which cannot be; with an index of their own, in another directory's view."""
    folder = tmp_path_factory.mktemp("sweep")
    overrides = small(
        manifest, folder / "sweep", "optim.lr=abc,1e-3", "trainer.max_steps=2", "data.validation=0.3",
        f"data.cache_dir={folder / 'index'}",
    )  # fmt: skip
    return folder, overrides, run("train", "-m", *overrides, cwd=folder, status=1)


def sweep_of(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def test_a_failing_run_ends_no_other_and_is_in_the_table(swept):
    folder, _, output = swept
    assert sorted(path.name for path in folder.iterdir()) == ["index", "sweep"]
    told = sweep_of(folder / "sweep")
    assert [(one["name"], one["state"], one["rank"]) for one in told["runs"]] == [
        ("lr-0.001", "finished", 1), ("lr-abc", "failed", None),
    ]  # fmt: skip
    assert told["metric"] == "val/loss"
    assert told["runs"][0]["scores"]["val/loss"]["stderr"] > 0
    assert told["runs"][1]["error"] == "optim.lr=abc: wanted a number, got a text."
    assert output.splitlines()[-1].startswith("vlmkit-train: 1 of 2 runs have no result: lr-abc. Run the same command")
    assert "Traceback" not in output
    assert (folder / "sweep" / "lr-0.001" / "hf" / "model.safetensors").is_file()
    assert len(lines(folder / "sweep" / "lr-0.001")) == 2
    for name in ("sweep.md", "sweep.html"):
        assert "lr-0.001" in (folder / "sweep" / name).read_text()


def test_what_is_finished_is_not_run_again_and_other_settings_are_refused(swept):
    folder, overrides, _ = swept
    mended = [word.replace("abc,", "") for word in overrides]
    output = run("train", "-m", *mended, "trainer.max_steps=3", status=1)
    assert "lr-0.001 holds a run with other settings: trainer.max_steps was 2, now 3. Set them back" in output
    output = run("train", "-m", *mended)
    assert "[1/1] lr-0.001: finished before, not run again, val/loss" in output
    assert [(one["name"], one["rank"]) for one in sweep_of(folder / "sweep")["runs"]] == [("lr-0.001", 1)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze=merger_only,mergr_only"], "freeze=mergr_only: no such option. Did you mean merger_only?"),
        (["optim.lr=interval(0.1,1)"], "Give them one by one, or choose hydra/sweeper=optuna"),
        (["hydra/launcher=basic"], "Choose hydra/launcher=process"),
        (["optim.lr=1,1.0,1"], "The sweep has the same run twice"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: nothing to search"),
        (["hydra.launcher.num_parallel=0"], "hydra.launcher.num_parallel=0: wanted at least 1"),
    ],
)
def test_wrong_turns_are_answered_before_anything_runs(overrides, message, tmp_path):
    output = run("train", "-m", *overrides, f"run_dir={tmp_path / 'sweep'}", status=1)
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("sweep/*/job.json"))


@pytest.mark.parametrize(
    ("plugin", "package"), [("hydra/sweeper=optuna", "optuna"), ("hydra/launcher=submitit_local", "submitit")]
)
def test_a_missing_extra_is_told_with_what_to_install(plugin, package, tmp_path):
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['vlmkit-train', '-m', {plugin!r}, 'optim.lr=1,2', "
        f"'run_dir={tmp_path / 'sweep'}']\nfrom vlmkit.cli.train import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{plugin} needs the package {package}, which is not installed: pip install 'vlmkit[sweep]'" in done.stderr


def test_a_job_is_told_apart_from_the_sweep_that_started_it():
    from vlmkit.config import with_saved_choices

    assert with_saved_choices(["-m", "init_from=runs/a,runs/b"], ("data",)) == ["-m", "init_from=runs/a,runs/b"]


def test_the_yaml_s_sweep_reads_like_the_command_line_s():
    from hydra import compose, initialize_config_dir

    from vlmkit.config import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name, sweeper, launcher in (
            ("sweep_lr", "GridSweeper", "ProcessLauncher"), ("optuna_lr", "OptunaSweeper", "ProcessLauncher"),
            ("slurm", "GridSweeper", "SubmititLauncher"),
        ):  # fmt: skip
            config = compose("train", overrides=[f"experiment={name}"], return_hydra_config=True)
            assert config.hydra.sweeper["_target_"].endswith(sweeper)
            assert config.hydra.launcher["_target_"].endswith(launcher)
            assert str(config.hydra.mode) == "RunMode.MULTIRUN"
        config = compose("train", overrides=["experiment=slurm", "hydra/launcher=process"], return_hydra_config=True)
        assert config.hydra.launcher["_target_"].endswith("ProcessLauncher")


# --- real runs, longer -------------------------------------------------------------------------------------------------


def wait_for(path: Path, process) -> None:
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_ends_no_other_and_is_taken_up_from_its_checkpoint(manifest, tmp_path):
    overrides = small(
        manifest,
        tmp_path / "sweep",
        "optim.lr=1e-3,2e-3",
        "trainer.max_epochs=2",
        "save.every_n_steps=2",
        "save.keep=0",
    )
    process = start("train", "-m", *overrides)
    first = tmp_path / "sweep" / "lr-0.001"
    while not list(first.glob("checkpoints/step-*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    (pid,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    states = {one["name"]: (one["state"], one["error"]) for one in sweep_of(tmp_path / "sweep")["runs"]}
    assert states == {
        "lr-0.002": ("finished", None),
        "lr-0.001": ("failed", "killed by SIGKILL (the system ends a process so when memory runs out)"),
    }
    output = run("train", "-m", *overrides)
    assert "lr-0.001: started, taken up again" in output
    assert "resumed from" in output
    assert [line["step"] for line in lines(first)] == list(range(1, 25))
    assert {one["name"]: one["state"] for one in sweep_of(tmp_path / "sweep")["runs"]} == dict.fromkeys(
        states, "finished"
    )


@pytest.mark.slow
def test_control_c_saves_what_is_under_way_and_the_sweep_goes_on_later(manifest, tmp_path):
    overrides = small(manifest, tmp_path / "sweep", "optim.lr=1e-3,2e-3", "trainer.max_epochs=3")
    process = start("train", "-m", *overrides)
    wait_for(tmp_path / "sweep" / "lr-0.001" / "train.jsonl", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert re.search(
        r"vlmkit-train: SIGINT: the runs under way were saved\. Run the same command with run_dir=\S+/sweep to go on\.",
        output,
    )
    told = {one["name"]: one["state"] for one in sweep_of(tmp_path / "sweep")["runs"]}
    assert told == {"lr-0.001": "interrupted", "lr-0.002": "waiting"}
    saved = [path.name for path in (tmp_path / "sweep" / "lr-0.001" / "checkpoints").iterdir()]
    assert len(saved) == 1
    run("train", "-m", *overrides)
    assert {one["state"] for one in sweep_of(tmp_path / "sweep")["runs"]} == {"finished"}
    assert [line["step"] for line in lines(tmp_path / "sweep" / "lr-0.001")] == list(range(1, 37))


@pytest.mark.slow
def test_each_run_of_two_ranks_is_a_process_of_its_own(manifest, tmp_path):
    more = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=1", "optim.lr=1e-3,1e-4"]
    run("train", "-m", *small(manifest, tmp_path / "sweep", *more), cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    jobs = [path for path in (tmp_path / "sweep").iterdir() if (path / "hf").is_dir()]
    assert sorted(path.name for path in jobs) == ["lr-0.0001", "lr-0.001"]
    assert all(lines(job)[0]["samples"] == 4 for job in jobs)


TINY = ["data.limit=48", "data.batch_size=8", "trainer.max_steps=2", "log.progress=false", "log.every_n_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "more", "num_runs"),
    [
        ("sweep_lr", ["optim.lr=1e-3,2e-3", "freeze=merger_only"], 2),
        ("optuna_lr", ["hydra.sweeper.num_trials=2", "validate.every_n_steps=1"], 2),
        ("slurm", ["hydra/launcher=submitit_local", "optim.lr=1e-3,2e-3"], 2),
    ],
)
def test_every_experiment_runs_on_the_embedded_defaults(experiment, more, num_runs, tmp_path):
    output = run("train", "-m", f"+experiment={experiment}", *TINY, *more, f"run_dir={tmp_path / 'sweep'}")
    told = sweep_of(tmp_path / "sweep")
    assert [one["rank"] for one in told["runs"]] == [1, 2][:num_runs]
    assert told["metric"] == "val/loss"
    assert "Traceback" not in output
    compared = run("compare", str(tmp_path / "sweep"))
    assert "allows for all 1 pairs of runs" in compared
    assert (tmp_path / "sweep" / "compare.html").is_file()


@pytest.mark.slow
def test_runs_are_ranked_by_a_benchmark_where_one_is_asked(tmp_path):
    more = ["validate.benchmarks=[shapes]", "validate.max_samples=4", "validate.max_new_tokens=4", "optim.lr=1e-3,2e-3"]
    run("train", "-m", *TINY, *more, f"run_dir={tmp_path / 'sweep'}")
    told = sweep_of(tmp_path / "sweep")
    assert told["metric"] == "eval/shapes/exact_match"
    assert not told["lower_is_better"]
    assert "p by " in run("compare", f"sweep={tmp_path / 'sweep'}")


@pytest.mark.slow
def test_a_training_that_falls_behind_is_ended_saved_and_has_no_rank(tmp_path):
    """A rate that teaches nothing: its run stops at its first validation, long before its last step."""
    searched = [
        "hydra/sweeper=optuna", "hydra.sweeper.num_trials=2", "optim.lr=choice(1e-12,3e-3)", "validate.every_n_steps=8",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "~hydra.sweeper.pruner.n_startup_trials",
        "+hydra.sweeper.pruner.upper=5.0", "data.validation=0.1", "data.limit=256", "data.batch_size=8",
        "optim.warmup_ratio=0", "log.progress=false", "log.every_n_steps=1", f"run_dir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    output = run("train", "-m", *searched)
    told = {one["name"]: one for one in sweep_of(tmp_path / "sweep")["runs"]}
    assert {name: (one["state"], one["rank"]) for name, one in told.items()} == {
        "lr-1e-12": ("pruned", None), "lr-0.003": ("finished", 1),
    }  # fmt: skip
    behind, whole = tmp_path / "sweep" / "lr-1e-12", tmp_path / "sweep" / "lr-0.003"
    assert 8 <= len(lines(behind)) < len(lines(whole)), "it is told between two steps"
    assert list((behind / "checkpoints").glob("step-*"))
    assert "ThresholdPruner ended it" in told["lr-1e-12"]["error"]
    assert "Traceback" not in output
