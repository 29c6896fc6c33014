"""The demo learns its task honestly, whatever the seed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.conftest import environment


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_answers_nine_of_ten_held_out_questions(seed, tmp_path):
    command = [sys.executable, "-m", "vlmkit.demo", "--out", str(tmp_path), "--seed", str(seed)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    shapes = json.loads((tmp_path / "full" / "eval" / "summary.json").read_text())["benchmarks"]["shapes"]
    assert shapes["score"] >= 90
    assert shapes["n"] == 240
    assert shapes["baselines"]["text_only_guesser"] < 45
    assert "Next: your own data" in done.stdout
