"""Losses of held-out samples: the mean, its standard error, the file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vlmkit.training.held_out import HeldOut, write_held_out


def test_ranks_are_joined_in_the_order_of_rows_and_masked_samples_left_out():
    found = HeldOut.joined([([4, 2], [8.0, 3.0], [2.0, 1.0]), ([], [], []), ([3, 1], [0.0, 6.0], [0.0, 3.0])])
    assert found == HeldOut(rows=(1, 2, 4), losses=(6.0, 3.0, 8.0), tokens=(3, 1, 2))
    assert found.mean == 17 / 6


def test_with_as_many_tokens_everywhere_it_is_the_error_of_a_mean():
    losses = np.random.default_rng(0).normal(2, 1, 50)
    found = HeldOut(rows=tuple(range(50)), losses=tuple(3 * losses), tokens=(3,) * 50)
    assert found.mean == pytest.approx(losses.mean())
    assert found.stderr == pytest.approx(losses.std(ddof=1) / math.sqrt(50))


def test_the_error_is_that_of_repeated_draws():
    """Against a simulation: 2000 draws of 200 samples, lengths and losses at random."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(2000):
        tokens = rng.integers(1, 20, 200)
        losses = tokens * rng.normal(2, 0.5, 200)
        found = HeldOut(rows=tuple(range(200)), losses=tuple(losses.tolist()), tokens=tuple(tokens.tolist()))
        means.append(found.mean)
        errors.append(found.stderr)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


def test_one_sample_has_no_error_and_none_has_no_mean():
    assert HeldOut(rows=(1,), losses=(2.0,), tokens=(1,)).stderr is None
    assert math.isnan(HeldOut(rows=(), losses=(), tokens=()).mean)


def test_the_file_names_rows_and_knows_no_nan(tmp_path):
    found = HeldOut(rows=(0, 7), losses=(1.5, float("nan")), tokens=(2, 1))
    write_held_out(tmp_path / "deep" / "held_out.jsonl", found, lambda row: f"rows.json:{row + 1}")
    lines = [json.loads(line) for line in (tmp_path / "deep" / "held_out.jsonl").read_text().splitlines()]
    assert lines == [
        {"schema": "vlmkit.held_out/1", "id": "rows.json:1", "loss": 1.5, "tokens": 2},
        {"schema": "vlmkit.held_out/1", "id": "rows.json:8", "loss": None, "tokens": 1},
    ]
