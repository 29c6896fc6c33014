"""A small LLaVA manifest with and without images, and runs of the real console command on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]


def write_manifest(folder: Path, num_rows: int, *, text_only: frozenset[int] = frozenset()) -> Path:
    """Rows with an image each, but for some; answers of different length."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_rows):
        words = " ".join(["one", "two", "three", "four"][: 1 + number % 4])
        row = {
            "id": str(number),
            "conversations": [{"from": "human", "value": "count"}, {"from": "gpt", "value": words}],
        }
        if number not in text_only:
            height, width = [(32, 64), (64, 64), (32, 32)][number % 3]
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            row["image"] = f"{number}.png"
            row["conversations"][0]["value"] = "<image>\ncount"
        rows.append(row)
    path = folder / "manifest.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """24 rows, four of them text only."""
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6, 11, 17}))


def environment() -> dict[str, str]:
    """For a subprocess that runs a console command of this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}


def start(module: str, *overrides: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command."""
    command = [sys.executable, "-m", f"vlmkit.cli.{module}", *overrides]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(module: str, *overrides: str, cwd: Path | None = None, status: int = 0) -> str:
    """Run a command to its end; what it printed."""
    process = start(module, *overrides, cwd=cwd)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def small(manifest: Path, run_dir: Path, *more: str) -> list[str]:
    """Overrides of a quick run on a manifest."""
    return [
        "data=llava",
        f"data.sources=[{manifest}]",
        "data.num_workers=0",
        "data.batch_size=2",
        f"run_dir={run_dir}",
        "log.every_n_steps=1",
        "log.progress=false",
        *more,
    ]


def lines(run_dir: Path) -> list[dict]:
    """train.jsonl."""
    return [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]


def ranks_below(pid: int) -> list[int]:
    """Processes that a process has started to run the same vlmkit command."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == pid and any(word.startswith(b"vlmkit.cli.") for word in command):
            found.append(int(place.name))
    return sorted(found)
