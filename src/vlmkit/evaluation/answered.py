"""Answers made elsewhere: a JSONL file with `id` and `answer`, scored against a benchmark's data without a model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.evaluation.benchmark import Case
from vlmkit.generation.backend import Generation

_log = logging.getLogger(__name__)
_SHOWN = 3


class FileAnswers:
    """The answers of a file, by the id of their case.

    Args:
        path: JSON Lines with `id` and `answer`; further fields are left alone.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is no such object, or an id stands twice with different answers.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise ConfigError(f"answers={path}: no such file. Give a JSONL file with the fields id and answer.")
        content = self.path.read_bytes()
        self.identity = {"answers": hashlib.sha256(content).hexdigest()}
        self._answers: dict[str, str] = {}
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                self._add(line, Origin(str(self.path), number))

    def _add(self, line: bytes, origin: Origin) -> None:
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"not a JSON object ({error}). Mend or drop the line.", reason="bad_row", origin=origin
            ) from error
        told = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        if missing := [field for field in ("id", "answer") if field not in told]:
            raise DataError(
                f"lacks {', '.join(missing)}. Give each line an id and an answer.", reason="bad_row", origin=origin
            )
        if not isinstance(told["answer"], str):
            kind = type(told["answer"]).__name__
            raise DataError(f"its answer is a {kind}, wanted a text.", reason="bad_row", origin=origin)
        identifier = str(told["id"])
        if self._answers.setdefault(identifier, told["answer"]) != told["answer"]:
            raise DataError(
                f"id {identifier!r} is answered twice, differently. Keep one of the answers.",
                reason="bad_row",
                origin=origin,
            )

    def check(self, benchmark: str, identifiers: Sequence[str]) -> None:
        """Compare the ids of the file with those of a benchmark; some on one side only are told.

        Raises:
            ConfigError: they have none in common.
        """
        common = self._answers.keys() & set(identifiers)
        if not common:
            raise ConfigError(
                f"answers={self.path}: none of its {len(self._answers)} ids ({_first(self._answers)}) is one of "
                f"{benchmark}'s {len(identifiers)} ({_first(identifiers)}). Give answers the ids of its cases."
            )
        if strange := [one for one in self._answers if one not in common]:
            _log.warning("%s: %d ids are not among %s's: %s.", self.path, len(strange), benchmark, _first(strange))
        if without := [one for one in identifiers if one not in common]:
            _log.warning(
                "%s: %d cases of %s have no answer: %s; recorded as failed.",
                self.path,
                len(without),
                benchmark,
                _first(without),
            )

    def answer(self, cases: Iterable[Case]) -> Iterator[Generation]:
        """The answers to these cases."""
        for case in cases:
            text = self._answers.get(case.id)
            error = f"{self.path}: no answer for id {case.id!r}." if text is None else None
            yield Generation(text=text or "", num_tokens=0, seconds=0.0, error=error)


def _first(identifiers: Sequence[str] | dict[str, str]) -> str:
    shown = list(identifiers)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(identifiers) > _SHOWN else "")
