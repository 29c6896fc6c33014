"""Applies harmful edits to a copy of the project, one at a time, and says which of them no test notices.

The edits are in `tests/mutants/*.toml`, a file per room of `src/vlmkit`, each with the tests that must fail once it is
made. An edit that leaves its tests green has *survived*: the tests, not the code, are what is wrong then. An entry reads

    [[mutant]]
    name = "the guard looks at the loss only"
    file = "src/vlmkit/training/callbacks/guard.py"
    before = "text that occurs exactly once in the file"
    after = "what replaces it"
    tests = ["tests/training/test_guard.py::test_a_gradient_that_is_not_finite"]

    python scripts/mutants.py                  all of them (`make mutants`)
    python scripts/mutants.py --sample 6       six of them, others every day (`make test-all`)
    python scripts/mutants.py guard mfu        those whose name or file contains one of the words
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
LISTS = REPOSITORY / "tests" / "mutants"
_COPIED = ("src", "conf", "tests", "bench", "scripts", "docs", "notebooks", "pyproject.toml", "README.md", "Makefile")
_TESTS_FAILED = 1
"""pytest's exit status when tests ran and some of them failed; a broken import or an unknown test has another."""
_TIMEOUT_SECONDS = 900.0

Verdict = Literal["caught", "survived", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One harmful edit, and the tests that must notice it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """The text of the file with the edit made.

        Raises:
            ValueError: if the edit changes nothing, or its place does not occur exactly once.
        """
        if self.before == self.after:
            raise ValueError(f"{self.name}: before and after are the same text")
        if (count := text.count(self.before)) != 1:
            raise ValueError(
                f"{self.name}: its place occurs {count} times in {self.file}, must be once; update the entry"
            )
        return text.replace(self.before, self.after)


def load_mutants(directory: Path = LISTS) -> list[Mutant]:
    """All mutants of a directory of lists, in the order of files and entries."""
    entries = [
        entry
        for path in sorted(directory.glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    ]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def draw_sample(mutants: Sequence[Mutant], size: int, day: int) -> list[Mutant]:
    """So many of them that belong to a day; consecutive days go through the whole list."""
    if size >= len(mutants):
        return list(mutants)
    # A stride that shares no factor with the length spreads a day's sample over all rooms.
    stride = next(step for step in range(len(mutants) // size, len(mutants) + 1) if _coprime(step, len(mutants)))
    return [mutants[(day * size + place) * stride % len(mutants)] for place in range(size)]


def _coprime(first: int, second: int) -> bool:
    while second:
        first, second = second, first % second
    return first == 1


def copy_project(directory: Path) -> Path:
    """Copy what the tests need, without the environment and what was built."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".pytest_cache")
    for name in _COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=ignored)
        else:
            shutil.copy2(source, directory / name)
    return directory


def run_tests(project: Path, tests: Sequence[str]) -> int | None:
    """Pytest's exit status on some tests of a copy of the project; None if they ran into the time limit."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(project / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "VLMKIT_SHARED": os.environ.get("VLMKIT_SHARED", str(REPOSITORY.parent / "shared")),
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def judge(mutant: Mutant, project: Path) -> tuple[Verdict, str]:
    """Make the edit in a copy of the project, run its tests, and take the edit back."""
    path = project / mutant.file
    original = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.apply(original), encoding="utf-8")
    except ValueError as error:
        return "invalid", str(error)
    try:
        status = run_tests(project, mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if status is None:
        return "caught", f"the tests did not end within {_TIMEOUT_SECONDS:.0f} s"
    if status == _TESTS_FAILED:
        return "caught", ""
    if status == 0:
        return "survived", f"{', '.join(mutant.tests)} passed (or skipped)"
    return "invalid", f"pytest ended with status {status}: the edit breaks an import, or a test does not exist"


def check_unchanged(project: Path, mutants: Sequence[Mutant]) -> bool:
    """Whether the tests of the mutants pass on the unchanged project: else nothing that follows means anything."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    return run_tests(project, tests) == 0


def main() -> None:
    """Judge the mutants that were asked for; the exit status is 1 unless every one of them was caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose name or file contains one of these")
    parser.add_argument("--sample", type=int, help="only so many, others every day")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the project that are tested at once")
    arguments = parser.parse_args()

    mutants = load_mutants()
    if arguments.words:
        mutants = [m for m in mutants if any(word in f"{m.name} {m.file}" for word in arguments.words)]
    if arguments.sample:
        mutants = draw_sample(mutants, arguments.sample, datetime.date.today().toordinal())
    if not mutants:
        sys.exit("mutants: none has such a name or file")

    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies: Queue[Path] = Queue()
        for number in range(arguments.jobs):
            copies.put(copy_project(Path(scratch) / str(number)))
        if not check_unchanged(Path(scratch) / "0", mutants):
            sys.exit("mutants: their tests fail on the unchanged code; run `make test` first")

        def judge_in_a_copy(mutant: Mutant) -> tuple[Verdict, str]:
            project = copies.get()
            started = time.monotonic()
            try:
                verdict, detail = judge(mutant, project)
            finally:
                copies.put(project)
            print(f"{verdict:9}{time.monotonic() - started:6.0f} s  {mutant.name}", flush=True)
            return verdict, detail

        with ThreadPoolExecutor(arguments.jobs) as threads:
            verdicts = list(threads.map(judge_in_a_copy, mutants))

    missed = [(m, *verdict) for m, verdict in zip(mutants, verdicts, strict=True) if verdict[0] != "caught"]
    for mutant, verdict, detail in missed:
        print(f"\n{verdict}: {mutant.name}\n  {mutant.file}: {detail}")
    print(f"\n{len(mutants) - len(missed)} of {len(mutants)} mutants were caught")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
