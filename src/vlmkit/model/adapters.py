"""Adapters as files of their own, which PEFT loads beside the model that they were trained on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from vlmkit import __version__
from vlmkit.errors import CheckpointError
from vlmkit.model.checkpoint import PROVENANCE_FILE, compare_models, probe_inputs, prove_export, save_hf, write_whole
from vlmkit.model.lora import Lora, is_adapter
from vlmkit.model.tensors import align_parameters
from vlmkit.processing.processor import Processor

SCHEMA = "vlmkit.adapter/1"
BASE = "base"
"""Directory, within the adapters', of the model that they belong to, where no published one is it."""


def save_adapter(
    hf: Any,
    *,
    lora: Lora,
    processor: Processor,
    directory: Path,
    base: str | PreTrainedModel,
    provenance: dict[str, Any],
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and prove them by loading them with PEFT.

    Args:
        hf: The model with adapters, on this process.
        lora: Their settings.
        processor: Saved beside them.
        directory: To write; only an export of vlmkit is replaced.
        base: The model that they belong to: a directory or hub id; or one that is nowhere yet, which is written into
            `base/`.
        provenance: Plain values for `vlmkit.json`.

    Raises:
        CheckpointError: it cannot be written, or what was written computes something else.
    """
    directory = directory.absolute()
    if isinstance(base, str):
        name = str(Path(base).absolute()) if Path(base).is_dir() else base
    else:
        name = str(directory / BASE)

    def fill(aside: Path) -> None:
        save_file(lora.adapter_tensors(hf), aside / "adapter_model.safetensors", {"format": "pt"})
        lora.peft_config(hf, base=name).save_pretrained(str(aside))
        processor.save(aside)
        content = {"schema": SCHEMA, "base": name, "provenance": provenance, "versions": {"vlmkit": __version__}}
        (aside / PROVENANCE_FILE).write_text(json.dumps(content, indent=1, default=str) + "\n")
        if not isinstance(base, str):
            save_hf(model=base, processor=processor, directory=aside / BASE, provenance=provenance)

    write_whole(directory, fill)
    if not isinstance(base, str):
        prove_export(directory / BASE, model=base, processor=processor)
    narrow = hf.dtype.itemsize < 4 or not isinstance(base, str) and base.dtype.itemsize < 4
    _prove_adapter(directory, hf=hf, base=name, narrow=narrow)
    return directory


def _prove_adapter(directory: Path, *, hf: Any, base: str, narrow: bool) -> None:
    """Load the base with plain transformers and the adapters with PEFT; compare tensors, logits and greedy text.

    Raises:
        CheckpointError: they differ.
    """
    from peft import PeftModel

    model = AutoModelForImageTextToText.from_pretrained(base, dtype=hf.dtype, trust_remote_code=False)
    with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5 by a name that is on its way out
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        reopened = PeftModel.from_pretrained(model, str(directory)).eval()
    align_parameters(reopened)
    wanted, found = (
        {name.removeprefix("base_model.model."): p for name, p in each.named_parameters() if is_adapter(name)}
        for each in (hf, reopened)
    )
    unequal = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or not torch.equal(wanted[name].cpu().float(), found[name].float())
    )
    if unequal:
        raise CheckpointError(f"{directory}: PEFT reads {unequal[0]} otherwise than it was written. Please report it.")
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    for number, inputs in enumerate(probe_inputs(processor)):
        compare_models(directory, number, reopened, hf, inputs, narrow=narrow)
