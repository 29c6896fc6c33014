"""What `vlmkit-check` says: findings in sections, as text for people and as JSON for machines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vlmkit.errors import VlmkitError

SCHEMA = "vlmkit.check/1"
Mark = Literal["ok", "note", "warning", "error"]
MARKS: tuple[Mark, ...] = ("ok", "note", "warning", "error")
"""From harmless to fatal: only `error` keeps a run from starting."""
_WIDTH = max(map(len, MARKS))


def many(number: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found.

    Attributes:
        mark: How bad it is.
        message: What was found, and what to do where that is needed; its first line stands for it in a summary.
        details: Lines below it: rows, bars.
    """

    mark: Mark
    message: str
    details: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Section:
    """What was found in one place.

    Attributes:
        name: `config`, `model`, `data`, `plan` or `resources`.
        findings: In the order in which they were looked for.
        figures: Numbers for machines; plain values.
        refused: Keys of settings whose faults are noted already.
    """

    name: str
    findings: list[Finding] = field(default_factory=list[Finding])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    refused: set[str] = field(default_factory=set[str])

    def add(self, mark: Mark, message: str, details: Sequence[str] = ()) -> None:
        """Note a finding."""
        self.findings.append(Finding(mark=mark, message=message, details=tuple(details)))

    def refuse(self, faults: Mapping[str, str]) -> None:
        """Note wrong settings, messages by key; what is made of them later does not repeat it."""
        for message in faults.values():
            self.add("error", message)
        self.refused |= faults.keys()

    def guarded(self) -> Guard:
        """For a `with` block: an error that a user can mend is noted, and what the block would have made is missing."""
        return Guard(self)

    @property
    def mark(self) -> Mark:
        """The worst mark of its findings."""
        return MARKS[max((MARKS.index(finding.mark) for finding in self.findings), default=0)]

    def to_text(self) -> str:
        """The findings, each with its mark, details below."""
        lines = [self.name]
        for finding in self.findings:
            first, *more = finding.message.splitlines() or [""]
            lines.append(f"  {finding.mark:<{_WIDTH}}  {first}")
            lines += [f"  {'':<{_WIDTH}}    {line}" for line in (*more, *finding.details)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        findings = [{"mark": one.mark, "message": one.message, "details": list(one.details)} for one in self.findings]
        return {"mark": self.mark, "findings": findings, "figures": self.figures}


class Guard:
    """Notes, in a section, an error that a user can mend, and lets the work after the block go on."""

    def __init__(self, section: Section) -> None:
        self._section = section

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (VlmkitError, HydraException, OmegaConfBaseException)):
            return False
        known = {line for finding in self._section.findings for line in finding.message.splitlines()}
        fresh = [line for line in str(error).splitlines() if line not in known]
        if fresh and not any(
            re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", fresh[0]) for key in self._section.refused
        ):
            self._section.add("error", "\n".join(fresh))
        return True


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sections, and whether the run would start.

    Attributes:
        sections: In the order in which they are told.
        num_steps: Optimiser steps that the run would take; None where there is no plan.
        limit: Rows of each source that were looked at; None: all.
    """

    sections: tuple[Section, ...]
    num_steps: int | None
    limit: int | None

    @property
    def errors(self) -> list[tuple[str, str]]:
        """Section and message of everything that keeps the run from starting."""
        return [
            (section.name, finding.message)
            for section in self.sections
            for finding in section.findings
            if finding.mark == "error"
        ]

    @property
    def starts(self) -> bool:
        """Whether nothing keeps the run from starting."""
        return not self.errors and self.num_steps is not None

    def verdict(self) -> str:
        """Whether the run would start, in one line."""
        warnings = sum(finding.mark == "warning" for section in self.sections for finding in section.findings)
        if self.starts:
            seen = "" if self.limit is None else f" on the first {self.limit:,} rows of each source"
            warned = f" ({many(warnings, 'warning')} above)" if warnings else ""
            return f"This run would start{seen}: {many(self.num_steps or 0, 'step')}{warned}."
        if not self.errors:
            return "This run would fail: there is no plan."
        told = "; ".join(f"{name}: {message.splitlines()[0].rstrip('.')}" for name, message in self.errors)
        return f"This run would fail ({many(len(self.errors), 'error')}). {told}."

    def to_text(self) -> str:
        """The sections and, as the last line, the verdict."""
        return "\n\n".join([*(section.to_text() for section in self.sections), self.verdict()])

    def to_json(self) -> dict[str, Any]:
        """Plain values; see the schema in the README."""
        return {
            "schema": SCHEMA,
            "starts": self.starts,
            "steps": self.num_steps,
            "limit": self.limit,
            "verdict": self.verdict(),
            "errors": [{"section": name, "message": message} for name, message in self.errors],
            "sections": {section.name: section.to_json() for section in self.sections},
        }
