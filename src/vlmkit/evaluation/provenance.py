"""What made a score, told beside it: prompt, template, pixel limits, decoding, rules, preset. A number without these is none.

`asked.json` beside the records keeps what concerned the answers, so that scoring again, which has no model, can tell it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from vlmkit import __version__
from vlmkit.evaluation.records import Record
from vlmkit.generation.backend import GenerationBackend, GenerationParams
from vlmkit.storage import written_aside

SCHEMA = "vlmkit.asked/1"
UNKNOWN: dict[str, Any] = {"backend": None, "template": None, "pixel_limits": None, "decoding": None}
"""Of answers that came from elsewhere: nothing is known of what made them."""
_HERE = Path(__file__).parent
_DIGITS = 12


def asked_with(backend: GenerationBackend, params: GenerationParams) -> dict[str, Any]:
    """What answers: backend, hash of the chat template, pixel limits, decoding. None for what a backend does not know."""
    processor: Any = getattr(backend, "processor", None)
    decoding = {name: value for name, value in vars(params).items() if name != "batch_size"}
    return {
        "backend": backend.identity.get("backend"),
        "template": processor.template_hash[:_DIGITS] if processor is not None else None,
        "pixel_limits": processor.limits() if processor is not None else None,
        "decoding": {"strategy": "greedy", **decoding, "dtype": backend.identity.get("dtype")},
    }


def keep_asked(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write what answers into the directory of a benchmark's records."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / "asked.json") as aside:
        aside.write_text(json.dumps({"schema": SCHEMA, **asked}, indent=1, default=str) + "\n", encoding="utf-8")


def kept_asked(folder: Path) -> dict[str, Any]:
    """What `keep_asked` wrote; `UNKNOWN` where nothing, or nothing readable, is there."""
    try:
        found: Any = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(UNKNOWN)
    told = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {name: told.get(name) for name in UNKNOWN}


def scored_with(records: Sequence[Record], *, protocol: str, preset: str) -> dict[str, Any]:
    """What scored: the prompts' id, the version of the rules, the preset; no judge, unless whoever judged says so.

    Args:
        records: The scored records.
        protocol: Whose prompt and rule were followed.
        preset: As the user chose, with what was changed in it.
    """
    unread = sum(record["outcome"] == "unparsed" for record in records)
    return {
        "preset": preset,
        "prompt_id": prompt_id(records, protocol=protocol),
        "parser": parser_version(),
        "judge": None,
        "parse_failures": round(unread / len(records), 4) if records else 0.0,
    }


def prompt_id(records: Sequence[Record], *, protocol: str) -> str:
    """The protocol, and a hash over all prompts in order: equal where the same cases were asked in the same words."""
    told = hashlib.sha256()
    for record in records:
        told.update(json.dumps([record.get("id"), record.get("prompt")], ensure_ascii=False).encode())
    return f"{protocol}:{told.hexdigest()[:_DIGITS]}"


@cache
def parser_version() -> str:
    """The package's version, and a hash over the source of every rule that reads or scores an answer."""
    told = hashlib.sha256()
    for path in (
        _HERE / "answers.py",
        *sorted((_HERE / "scorers").glob("*.py")),
        *sorted((_HERE / "benchmarks").glob("*.py")),
    ):
        told.update(path.name.encode() + path.read_bytes())
    return f"{__version__}+{told.hexdigest()[:_DIGITS]}"
