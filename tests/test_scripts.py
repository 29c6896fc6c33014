"""Every script under bench/ and scripts/ runs: the measurements in their quick form, the others as far as one machine can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import REPOSITORY

BENCH = sorted(path.name for path in (REPOSITORY / "bench").glob("*.py"))
ELSEWHERE = {
    "docs_hooks.py": "docs/test_pages.py",
    "mutants.py": "test_mutants.py",
    "notebooks.py": "docs/test_pages.py",
    "slurm.sh": "test_release.py",
    "try_release.sh": "test_release.py",
}
"""Scripts that other tests run, and where."""
HERE = {"launch.sh", "tables.py"}


def run(*command: str, cwd: Path = REPOSITORY, status: int = 0, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=cwd, env={**environment, **variables}, text=True, capture_output=True, timeout=900, check=False
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCH)
def test_a_measurement_runs_in_its_quick_form(name, tmp_path):
    """Where it compares results it fails unless they agree; speed and memory of small sizes are printed only."""
    assert run(sys.executable, f"bench/{name}", "--quick", TMPDIR=str(tmp_path)).strip()


def test_the_readme_of_the_measurements_has_a_section_for_each():
    text = (REPOSITORY / "bench" / "README.md").read_text(encoding="utf-8")
    assert [name for name in BENCH if f"\n## {name}\n" not in text] == []


def test_every_script_is_run_by_a_test():
    names = {path.name for path in (REPOSITORY / "scripts").iterdir() if path.suffix in (".py", ".sh")}
    assert names == HERE | set(ELSEWHERE)
    for name, test in ELSEWHERE.items():
        assert name.partition(".")[0] in (REPOSITORY / "tests" / test).read_text(encoding="utf-8"), name


@pytest.mark.slow
def test_the_tables_are_those_of_the_code(tmp_path):
    """In a copy: what the script writes is what is there."""
    for name in ("README.md", "docs/errors.md", "scripts/tables.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    for name in ("src", "conf"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    run(sys.executable, "scripts/tables.py", cwd=tmp_path)
    for name in ("README.md", "docs/errors.md"):
        assert (tmp_path / name).read_text() == (REPOSITORY / name).read_text(), name


@pytest.mark.slow
def test_the_launcher_starts_a_run_of_two_processes(tmp_path):
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    run(
        "bash", "scripts/launch.sh", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}", "data.limit=16",
        "data.num_workers=0", "trainer.max_steps=1", "log.progress=false",
        TORCHRUN=str(torchrun), CUDA_VISIBLE_DEVICES="0,1",
    )  # fmt: skip
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()
