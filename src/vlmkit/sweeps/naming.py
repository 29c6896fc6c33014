"""Names of runs and of settings: by what differs between the runs, short, and fit for any file system and shell."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_LONGEST = 80
_UNFIT = re.compile(r"[^A-Za-z0-9.+_-]+")


def differing(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys that do not have the same value in all jobs, in their order; a key that a job lacks differs."""
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]


def labels(keys: Sequence[str]) -> dict[str, str]:
    """A short word for each key: its last part, or as many parts as it takes to tell it from the others."""
    found: dict[str, str] = {}
    for key in keys:
        parts = _parts(key)
        others = [_parts(other) for other in keys if other != key]
        size = next(
            (size for size in range(1, len(parts)) if all(parts[-size:] != other[-size:] for other in others)),
            len(parts),
        )
        found[key] = ".".join(parts[-size:])
    return found


def run_names(jobs: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """A directory name for each job: `lr-1e-05_freeze-merger_only`.

    A name depends on the job's own values and on which keys are named, not on the other values: a value that is added
    later leaves the other names as they were. Names that would be alike, also where capitals do not count, end in a hash
    of their values.

    Args:
        jobs: Values by key.
        keys: What to name.
    """
    words = labels(keys)
    plain = [_name([f"{words[key]}-{_word(job[key])}" for key in keys if key in job]) for job in jobs]
    told = Counter(name.lower() for name in plain)
    alike = {name for name, count in told.items() if count > 1}
    return [
        f"{name}-{_digest(job, keys)}" if name.lower() in alike else name for name, job in zip(plain, jobs, strict=True)
    ]


def _parts(key: str) -> list[str]:
    return [part for part in re.split(r"[./@]", key.lstrip("+~")) if part] or [key]


def _name(parts: Sequence[str]) -> str:
    whole = "_".join(parts) or "run"
    if len(whole) <= _LONGEST:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: _LONGEST - 9]}-{digest}"


def _word(value: str) -> str:
    """A value without quotes and brackets; what a shell or Hydra would trip over becomes a hyphen."""
    return _UNFIT.sub("-", value).strip("-.") or "none"


def _digest(job: Mapping[str, str], keys: Sequence[str]) -> str:
    return hashlib.sha256(repr([job.get(key) for key in keys]).encode()).hexdigest()[:8]
