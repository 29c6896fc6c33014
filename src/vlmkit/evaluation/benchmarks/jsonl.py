"""A benchmark out of a JSONL file: an image, a question, a short answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError, Origin
from vlmkit.evaluation.benchmark import BadCase, Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.score import Score, grade

_KEYS = ("id", "image", "question", "answer")


class JsonlBenchmark:
    """Rows with `id`, `image` (a path under `root`), `question`, `answer` and, as wanted, `category`.

    An answer is right if it is the expected one, letter case, surrounding white space and a final full stop aside.

    Args:
        name: What reports call it.
        path: The file.
        root: Directory of the images; None: the file's.
        prompt_suffix: After each question; None: nothing.
        baselines: Scores in percent that need no model.
    """

    metric = "exact_match"
    protocol = "vlmkit"

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        root: str | Path | None,
        prompt_suffix: str | None,
        baselines: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.path = Path(path)
        self.root = Path(root) if root else self.path.parent
        self.source = str(path)
        self.suffix = prompt_suffix or ""
        self._baselines = dict(baselines or {})

    def cases(self) -> Iterator[Case | BadCase]:
        """A case a line."""
        if not self.path.is_file():
            raise ConfigError(f"benchmarks: {self.name} reads {self.path}, which is not there.")
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._case(line, Origin(str(self.path), number))

    def _case(self, line: str, origin: Origin) -> Case | BadCase:
        try:
            row: dict[str, Any] = json.loads(line)
            missing = [key for key in _KEYS if key not in row]
        except (ValueError, TypeError) as error:
            return BadCase(id=f"line-{origin.row}", reason=f"{origin}: not a JSON object ({error}).")
        if missing:
            return BadCase(id=str(row.get("id", f"line-{origin.row}")), reason=f"{origin}: lacks {', '.join(missing)}.")
        prompt = f"\n{row['question']}{self.suffix}"
        return ask(
            str(row["id"]),
            self.root / row["image"],
            prompt,
            row["answer"],
            origin=origin,
            category=str(row.get("category", "")),
        )

    def score(self, case: Case, answer: str) -> Score:
        """1 if equal; an empty answer is unparsed."""
        said = _plain(answer)
        return grade(float(said == _plain(str(case.expected))), extracted=said)

    def baselines(self) -> dict[str, float]:
        """As given."""
        return self._baselines


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").strip().lower()
