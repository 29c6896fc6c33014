"""Small things that the benchmarks share: an image and a question as a case, and the names of protocols."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.errors import Origin
from vlmkit.evaluation.benchmark import Case

PROTOCOLS = ("lmms-eval", "vlmevalkit")


def ask(
    identifier: str,
    image: Path | bytes,
    prompt: str,
    expected: Any,
    *,
    origin: Origin | None = None,
    category: str = "",
    options: Mapping[str, str] | None = None,
) -> Case:
    """One image, then one text, as both reference evaluators show it."""
    turn = Turn("user", (ImagePart(image), TextPart(prompt)))
    told = str(image) if isinstance(image, Path) else f"{len(image)} bytes"
    return Case(
        id=identifier,
        conversation=Conversation((turn,), origin),
        prompt=prompt,
        expected=expected,
        category=category,
        media=(told,),
        options=options or {},
    )


def check_protocol(name: str, protocol: str) -> str:
    """The protocol, if it is one.

    Raises:
        ValueError: it is not.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"benchmark_options.{name}.protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return protocol
