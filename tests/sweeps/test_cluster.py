"""Jobs by submitit: on this machine, and through SLURM's commands as stand-ins that run what they are given."""

from __future__ import annotations

import os
import signal

import pytest

from tests.sweeps.standins import WAITS, Log, job
from tests.training.conftest import REPOSITORY
from vlmkit.errors import ConfigError, Interrupted
from vlmkit.sweeps.job import Claim
from vlmkit.sweeps.processes import LocalProcess
from vlmkit.sweeps.running import run_jobs

pytest.importorskip("submitit")
from vlmkit.sweeps.cluster import Beside, ClusterJobs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit's own

SBATCH = """#!/bin/sh
cp "$1" "{folder}/submitted-$(basename "$1")"
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NAME=x
sh "$1" > "{folder}/said" 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2 ;; *) shift ;; esac; done
exec "$@"
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """By the processes that submitit starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]))


def local(**parameters):
    return ClusterJobs(cluster="local", num_parallel=2, max_num_timeout=0, parameters={"timeout_min": 10, **parameters})


def test_runs_are_processes_there_too(tmp_path):
    log = Log()
    jobs = [
        job(tmp_path, "a", "print(os.environ['SLURM_JOB_NAME'])\nfinish()"),
        job(tmp_path, "b", "os.kill(os.getpid(), signal.SIGKILL)"),
        job(tmp_path, "c", "sys.exit('vlmkit-train: broken')"),
    ]
    run_jobs(iter(jobs), directory=tmp_path, launching=local(), watching=log, show_output=False)
    assert log.states == {"a": "finished", "b": "failed", "c": "failed"}
    assert "SIGKILL" in log.outcomes["b"].error
    assert log.outcomes["c"].error == "broken"
    assert (tmp_path / "a" / "output.log").read_text() == "bash\n"


def test_a_run_is_ended_early_by_a_wish_in_its_directory(tmp_path):
    log = Log({"a": "it falls behind"})
    run_jobs(iter([job(tmp_path, "a", WAITS)]), directory=tmp_path, launching=local(), watching=log, show_output=False)
    assert log.states == {"a": "pruned"}


def test_a_signal_to_the_sweep_lets_the_runs_save(tmp_path):
    log = Log()
    log.stop_early = lambda one: os.kill(os.getpid(), signal.SIGINT) if (one.run_dir / "ready").exists() else None
    with pytest.raises(Interrupted, match="SIGINT"):
        run_jobs(
            iter([job(tmp_path, "a", WAITS)]), directory=tmp_path, launching=local(), watching=log, show_output=False
        )
    assert log.states == {"a": "interrupted"}


def test_out_of_time_a_run_saves_and_is_queued_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    opened = f"open({str(tmp_path / 'pipe')!r}, 'w').close()\n"
    waits = job(tmp_path, "a", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n" + opened + WAITS)
    claim = Claim(waits.run_dir)
    beside = Beside(waits)
    beside.process = LocalProcess(waits, environment=dict(os.environ))
    (tmp_path / "pipe").open().close()
    again = beside.checkpoint()
    assert beside.process.process.returncode == 75
    assert again.function.job == waits
    claim.release()


def test_without_slurm_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no srun here.*hydra/launcher=submitit_local"):
        ClusterJobs(cluster="slurm", num_parallel=1, max_num_timeout=0, parameters={})


def test_slurm_is_asked_for_what_the_settings_say(tmp_path, monkeypatch):
    commands = {
        "sbatch": SBATCH.replace("{folder}", str(tmp_path)),
        "srun": SRUN,
        "sacct": "#!/bin/sh\necho 'JobID|State|NodeList'\n",
        "scancel": "#!/bin/sh\n",
    }
    for name, content in commands.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster = ClusterJobs(
        cluster="slurm", num_parallel=1, max_num_timeout=3,
        parameters={"timeout_min": 90, "gpus_per_node": 2, "slurm_partition": "train", "slurm_signal_delay_s": 120, "slurm_qos": None},
    )  # fmt: skip
    log = Log()
    jobs = [job(tmp_path, "lr-1e-05", "finish()"), job(tmp_path, "lr-2e-05", "sys.exit('vlmkit-train: broken')")]
    run_jobs(iter(jobs), directory=tmp_path, launching=cluster, watching=log, show_output=False)
    assert log.states == {"lr-1e-05": "finished", "lr-2e-05": "failed"}, (tmp_path / "said").read_text()
    assert log.outcomes["lr-2e-05"].error == "broken"
    asked = next(tmp_path.glob("submitted-*")).read_text()
    for line in ("--job-name=lr-", "--time=90", "--gpus-per-node=2", "--partition=train", "--signal=USR2@120"):
        assert f"#SBATCH {line}" in asked
    assert "qos" not in asked


def test_a_setting_that_submitit_refuses_is_told_before_a_job_is_made():
    with pytest.raises(ConfigError, match="hydra/launcher=submitit_local: Unknown executor 'timeot'"):
        local(timeot_min=3)
