"""Names of runs: by what differs, stable, and fit for any file system and for Hydra's grammar."""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.sweeps.naming import differing, labels, run_names

JOBS = [
    {"optim.lr": lr, "freeze": freeze, "seed": "0"} for lr in ("1e-05", "2e-05") for freeze in ("merger_only", "none")
]


def test_a_name_says_what_differs_and_nothing_else():
    keys = differing(JOBS)
    assert keys == ["optim.lr", "freeze"]
    assert run_names(JOBS, keys) == [
        "lr-1e-05_freeze-merger_only",
        "lr-1e-05_freeze-none",
        "lr-2e-05_freeze-merger_only",
        "lr-2e-05_freeze-none",
    ]


def test_a_value_that_is_added_leaves_the_other_names_as_they_were():
    more = [*JOBS, {"optim.lr": "3e-05", "freeze": "none", "seed": "0"}]
    assert run_names(more, differing(more))[:4] == run_names(JOBS, differing(JOBS))


def test_a_label_is_as_long_as_it_takes_to_tell_settings_apart():
    assert labels(["model.lora.rank", "data.batch_size"]) == {
        "model.lora.rank": "rank",
        "data.batch_size": "batch_size",
    }
    assert labels(["model.lora.rank", "other.rank"]) == {"model.lora.rank": "lora.rank", "other.rank": "other.rank"}
    assert labels(["+data.new", "hydra/sweeper"]) == {"+data.new": "new", "hydra/sweeper": "sweeper"}


def test_values_that_look_alike_get_names_that_do_not():
    jobs = [{"data.sources": value} for value in ("[a.json]", "[A.json]", "'a.json'", "b/c.json")]
    names = run_names(jobs, ["data.sources"])
    assert len({name.lower() for name in names}) == 4
    assert names[3] == "sources-b-c.json"
    assert all(name.startswith(("sources-a.json-", "sources-A.json-")) for name in names[:3])


def test_a_long_name_is_cut_and_told_apart_by_a_hash():
    jobs = [{"data.root": "/very" * 40 + end} for end in "ab"]
    names = run_names(jobs, ["data.root"])
    assert len(set(names)) == 2
    assert all(len(name) <= 80 for name in names)


def test_without_a_difference_there_is_still_a_name():
    assert run_names([{"seed": "0"}], []) == ["run"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=4, unique=True))
def test_any_value_makes_a_name_that_a_file_system_a_shell_and_hydra_take(values):
    names = run_names([{"data.root": value} for value in values], ["data.root"])
    assert len({name.lower() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9.+_-]{1,100}", name)
        assert not name.startswith((".", "-"))
        (override,) = OverridesParser.create().parse_overrides([f"run_dir=runs/{name}"])
        assert not override.is_sweep_override()
        assert override.value() == f"runs/{name}"
