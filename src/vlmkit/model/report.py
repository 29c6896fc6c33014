"""What an assembled model is made of: where every config field and every tensor came from, and the proof."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Origin = Literal["copied", "cropped", "extended", "new"]
SCHEMA = "vlmkit.assembly/1"


@dataclass(frozen=True, kw_only=True)
class FieldOrigin:
    """One field of the final config.

    Attributes:
        name: Dotted path in `config.json`.
        value: Its value.
        source: `template`, `vision_encoder`, `language_model`, or `vlmkit` (decided here; see `why`).
        why: The rule, where it is not a plain copy.
    """

    name: str
    value: Any
    source: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class TensorOrigin:
    """One tensor of the final model.

    Attributes:
        name: As in the state dict.
        shape: Its shape.
        origin: `copied`; `cropped` (the first rows of a larger one); `extended` (all rows of a smaller one, the rest
            drawn anew); `new` (drawn anew).
        source: `<part>:<file>:<name there>`; empty for a new one.
        sha256: Of the bytes in the model.
    """

    name: str
    shape: tuple[int, ...]
    origin: Origin
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One thing that was compared.

    Attributes:
        claim: What must hold.
        holds: Whether it does.
        detail: On what, and how far off.
    """

    claim: str
    holds: bool
    detail: str


@dataclass(kw_only=True)
class AssemblyReport:
    """Provenance of a model and the proof of it.

    Attributes:
        sources: Directory or hub id of each part.
        fields: Every field of the final config.
        tensors: Every tensor of the final model.
        unused: Tensors of each source that the model has no use for, counted by their first two name parts.
        proofs: Filled in by `prove`.
    """

    sources: dict[str, str]
    fields: list[FieldOrigin]
    tensors: list[TensorOrigin]
    unused: dict[str, dict[str, int]]
    proofs: list[Proof] = field(default_factory=list[Proof])

    @property
    def proved(self) -> bool:
        """Whether something was compared and everything held."""
        return bool(self.proofs) and all(proof.holds for proof in self.proofs)

    def to_json(self) -> str:
        """The whole report, `"schema": "vlmkit.assembly/1"`."""
        return json.dumps({"schema": SCHEMA, **asdict(self), "proved": self.proved}, indent=1, default=str) + "\n"

    def to_text(self) -> str:
        """The report for a reader: sources, proof, fields by source, tensors by origin."""
        lines = ["Assembled from"]
        lines += [f"  {part:15} {source}" for part, source in self.sources.items()]
        lines += ["", "Proof" if self.proofs else "Proof: not run"]
        lines += [f"  {'holds ' if proof.holds else 'FAILS '} {proof.claim} ({proof.detail})" for proof in self.proofs]
        lines += ["", "Config fields, and where each came from"]
        width = max(len(one.name) for one in self.fields)
        for one in sorted(self.fields, key=lambda one: one.name):
            why = f"  ({one.why})" if one.why else ""
            lines.append(f"  {one.name:{width}}  {one.source:14}  {json.dumps(one.value, default=str)}{why}")
        lines += ["", "Tensors, by origin"]
        lines += [f"  {count:6} {origin}" for origin, count in Counter(t.origin for t in self.tensors).most_common()]
        for tensor in self.tensors:
            if tensor.origin != "copied":
                lines.append(
                    f"    {tensor.origin:8} {tensor.name} {list(tensor.shape)} from {tensor.source or 'the seed'}"
                )
        for part, counts in self.unused.items():
            told = ", ".join(f"{count} of {prefix}" for prefix, count in counts.items())
            lines.append(f"  not used from {part}: {told}")
        return "\n".join(lines) + "\n"
