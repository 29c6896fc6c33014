"""What is handed out: wheel and sdist are whole, install into empty environments, and their commands run from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import vlmkit

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED_FOR_HELP = ("hydra", "omegaconf", "antlr4", "yaml", "packaging")
"""Pure Python that `--help` needs; taken from this environment, for other versions of Python too."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def call(*command: str | Path, cwd: Path, **more: str) -> str:
    """Run a command without this checkout on its path; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The sdist, and the wheel that is built out of it."""
    pytest.importorskip("build", reason="the build package is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


def interpreter(version: str) -> str:
    """An interpreter of a minor version; the test is skipped where there is none."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")) or [shutil.which(f"python{version}")]
    if not found[-1] or subprocess.run([found[-1], "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {version} on this machine")
    return str(found[-1])


def empty_environment(python: str, folder: Path) -> tuple[Path, Path]:
    """A virtual environment without pip; its bin and its site-packages."""
    call(python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    [site] = folder.glob("lib/python3.*/site-packages")
    return folder / "bin", site


def install(wheel: Path, environment: Path) -> None:
    """Install the wheel alone, with this interpreter's pip and nothing from an index."""
    call(
        sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index",
        "--no-warn-conflicts", wheel, cwd=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_the_sdist_holds_what_the_checkout_needs(dist):
    [archive] = dist.glob("*.tar.gz")
    assert archive.name == f"vlmkit-{vlmkit.__version__}.tar.gz"
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    wanted = ("src/vlmkit/config.py", "conf/train.yaml", "tests/conftest.py", "docs/errors.md", "docs/pictures/plan.svg",
              "notebooks/quickstart.ipynb", "scripts/launch.sh", "mkdocs.yml", "Makefile", "CHANGELOG.md", "LICENSE")  # fmt: skip
    assert [name for name in wanted if name not in names] == []
    assert not [name for name in names if name.startswith(("runs/", "site/", "build/", ".venv"))]


@pytest.mark.slow
def test_the_wheel_trains_from_another_directory(dist, tmp_path):
    """In an empty environment that finds its dependencies where the tests have theirs, but not this checkout."""
    bin_, site = empty_environment(sys.executable, tmp_path / "venv")
    install(next(dist.glob("*.whl")), tmp_path / "venv")
    torch = Path(next(iter(__import__("torch").__path__)))
    (site / "dependencies.pth").write_text(f"{torch.parent}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in PROJECT["scripts"]:
        assert "Powered by Hydra" in call(bin_ / name, "--help", cwd=elsewhere)
    where = call(bin_ / "python", "-c", "import vlmkit; print(vlmkit.__file__)", cwd=elsewhere).strip()
    assert Path(where).is_relative_to(site)
    quick = ["trainer.max_steps=2", "trainer.accelerator=cpu", "data.limit=32", "log.progress=false", "run_dir=run"]
    call(bin_ / "vlmkit-train", *quick, cwd=elsewhere, OMP_NUM_THREADS="1")
    assert (elsewhere / "run" / "hf" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_module_compiles_and_every_command_answers(dist, tmp_path, version):
    bin_, site = empty_environment(interpreter(version), tmp_path / "venv")
    install(next(dist.glob("*.whl")), tmp_path / "venv")
    call(bin_ / "python", "-W", "error", "-m", "compileall", "-q", "-f", site / "vlmkit", cwd=tmp_path)
    for name in NEEDED_FOR_HELP:
        (site / name).symlink_to(Path(next(iter(__import__(name).__path__))))
    for name in PROJECT["scripts"]:
        assert "Powered by Hydra" in call(bin_ / name, "--help", cwd=tmp_path)
    told = call(bin_ / "vlmkit-train", "--cfg", "job", "stage=stage1", cwd=tmp_path)
    assert "merger: false" in told
    metadata = call(
        bin_ / "python",
        "-c",
        "import importlib.metadata as m; print(m.version('vlmkit'), m.requires('vlmkit'))",
        cwd=tmp_path,
    )
    assert metadata.startswith(f"{vlmkit.__version__} ")


def test_the_version_has_one_home_and_the_supported_pythons_are_told():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    told = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert told == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_a_tag_that_is_not_the_version_is_refused():
    script = REPOSITORY / "scripts" / "try_release.sh"
    done = subprocess.run(["bash", script, "--tag", "v0.0.0"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"the tag is v0.0.0, the version v{vlmkit.__version__}" in done.stderr


def test_the_workflow_runs_what_ci_runs():
    text = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "- run: .ci/run" in text
    assert 'matrix: {python: ["3.11", "3.12", "3.13"]}' in text
    for script in ("try_release.sh", "slurm.sh"):
        assert os.access(REPOSITORY / "scripts" / script, os.X_OK), script


@pytest.mark.parametrize(("status", "ends", "queued"), [(0, 0, False), (75, 0, True), (1, 1, False)])
def test_the_slurm_script_queues_a_job_again_that_was_told_to_leave(tmp_path, status, ends, queued):
    for name, text in {"srun": f'echo "$@" > srun.txt\nexit {status}', "scontrol": 'echo "$@" > scontrol.txt'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
    }  # fmt: skip
    script = REPOSITORY / "scripts" / "slurm.sh"
    done = subprocess.run(
        ["bash", script, "stage=stage2", "run_dir=/shared/x"], cwd=tmp_path, env=environment, check=False, timeout=60
    )
    assert done.returncode == ends
    assert (tmp_path / "srun.txt").read_text().split() == [
        "--kill-on-bad-exit=1", "vlmkit-train", "trainer=fsdp", "trainer.devices=8", "trainer.num_nodes=2", "resume_from=auto",
        "stage=stage2", "run_dir=/shared/x",
    ]  # fmt: skip
    assert (tmp_path / "scontrol.txt").exists() == queued


def test_the_slurm_script_asks_for_a_directory_that_outlives_the_job(tmp_path):
    script = REPOSITORY / "scripts" / "slurm.sh"
    done = subprocess.run(["bash", script, "stage=stage2"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "give run_dir=DIRECTORY" in done.stderr
