"""The Hugging Face directory: written aside, proved by reopening with plain transformers, with its provenance."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers import __version__ as transformers_version

from vlmkit import __version__
from vlmkit.errors import CheckpointError
from vlmkit.model.families import family_of
from vlmkit.model.tensors import TensorReader, align_parameters, tensor_hash, weight_files
from vlmkit.processing.processor import Processor
from vlmkit.storage import aside_of, sync_to_disk

PROVENANCE_FILE = "vlmkit.json"
SCHEMA = "vlmkit.model/1"
_SHARD = "4GB"
"""Of weights that are written twice: so much more memory is needed."""
KEY_LAYOUT = "transformers-5"
"""Tag of the names in the state dict; another library version may rename them."""


def save_hf(*, model: PreTrainedModel, processor: Processor, directory: Path, provenance: dict[str, Any]) -> Path:
    """Write model, processor, template, pixel limits and `vlmkit.json`; the directory appears whole or not at all.

    Args:
        model: What to save; every tensor on this process.
        processor: Whose pixel limits are in force.
        directory: Replaced where vlmkit wrote it or where it is empty.
        provenance: Plain values: where the weights came from and what trained them.

    Returns:
        The directory, as an absolute path.

    Raises:
        CheckpointError: the disk refuses, or other files are there.
    """
    directory = directory.absolute()

    def fill(aside: Path) -> None:
        _write_weights(model, aside)
        processor.save(aside)
        _drop_runtime_settings(aside / "config.json")
        text = json.dumps(describe(model, processor, provenance), indent=1, default=str)
        (aside / PROVENANCE_FILE).write_text(text + "\n")

    write_whole(directory, fill)
    return directory


def write_whole(directory: Path, fill: Callable[[Path], None]) -> None:
    """Write a directory aside, sync it and give it its name: it appears whole or not at all.

    Args:
        directory: Replaced where vlmkit wrote it or where it is empty.
        fill: Fills the directory that it is given.

    Raises:
        CheckpointError: the disk refuses, or other files are there.
    """
    check_replaceable(directory)
    aside = aside_of(directory)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        for path in (*aside.rglob("*"), aside):
            sync_to_disk(path)
        _put_in_place(aside, directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{directory}: could not be written ({error}). What stood there stands. Make room, or name another directory."
        ) from error


def check_replaceable(directory: Path) -> None:
    """Make sure that writing there deletes nothing but an export of ours.

    Raises:
        CheckpointError: the path is a file, or a directory with files that vlmkit did not write.
    """
    if directory.is_dir():
        held = sorted(path.name for path in directory.iterdir())
        if held and PROVENANCE_FILE not in held:
            raise CheckpointError(
                f"{directory}: not empty and not written by vlmkit (it has {held[0]!r} but no {PROVENANCE_FILE}), so it is not "
                "replaced. Name a new directory, or empty this one."
            )
    elif directory.exists():
        raise CheckpointError(f"{directory}: is a file. Name a directory.")


def describe(model: PreTrainedModel, processor: Processor, provenance: dict[str, Any]) -> dict[str, Any]:
    """The content of `vlmkit.json`."""
    return {
        "schema": SCHEMA,
        "key_layout": KEY_LAYOUT,
        "provenance": provenance,
        "tensors": {name: tensor_hash(tensor) for name, tensor in _saved_tensors(model).items()},
        "processor": processor.fingerprint,
        "template": processor.template_hash,
        "tokenizer": processor.tokenizer_hash,
        "pixel_limits": processor.limits(),
        "versions": {"vlmkit": __version__, "transformers": transformers_version, "torch": torch.__version__},
    }


def read_provenance(directory: Path) -> dict[str, Any] | None:
    """Content of `vlmkit.json`; None where the directory is not ours.

    Raises:
        CheckpointError: another version wrote it, or its tensors are named in another way.
    """
    path = directory / PROVENANCE_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: its schema is {content.get('schema')!r}, this version reads {SCHEMA!r}. Export it with the version that wrote it."
        )
    if (layout := content.get("key_layout")) != KEY_LAYOUT:
        raise CheckpointError(
            f"{path}: its tensors are named as {layout!r} names them (written with transformers "
            f"{content.get('versions', {}).get('transformers')}); this vlmkit knows {KEY_LAYOUT!r}. Export them again with the "
            "versions that wrote them, or read them with a vlmkit that knows this layout."
        )
    return content


def prove_export(directory: Path, *, model: PreTrainedModel, processor: Processor) -> None:
    """Reopen the directory with plain transformers and compare: names, hashes, logits, greedy text.

    Args:
        directory: As written by `save_hf`.
        model: What was saved.
        processor: What was saved with it.

    Raises:
        CheckpointError: names the first difference.
    """
    live = _saved_tensors(model)
    reader = TensorReader(directory)
    if unequal := sorted(set(live) ^ set(reader.names)):
        raise CheckpointError(
            f"{directory}: {len(unequal)} tensors are in the file or in the model only (first: {unequal[0]}). Please report it."
        )
    for name, tensor in live.items():
        if tensor_hash(reader.read(name)) != tensor_hash(tensor):
            raise CheckpointError(
                f"{directory}: tensor {name} in the file differs from the model's. Write it again, to another disk."
            )
    reopened = AutoModelForImageTextToText.from_pretrained(directory, dtype="auto", trust_remote_code=False).eval()
    if wrong := sorted(f"{name} as {p.dtype}" for name, p in reopened.named_parameters() if p.dtype != model.dtype):
        raise CheckpointError(f"{directory}: transformers reads {wrong[0]}, saved as {model.dtype}. Please report it.")
    align_parameters(reopened)
    reprocessor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for number, inputs in enumerate(probe_inputs(reprocessor)):
            compare_models(directory, number, reopened, model, inputs, narrow=model.dtype.itemsize < 4)
    finally:
        for module, mode in training.items():
            module.training = mode
    limits = Processor(reprocessor, positions_per_side=None).limits()
    if limits != processor.limits():
        raise CheckpointError(
            f"{directory}: its pixel limits read back as {limits}, saved were {processor.limits()}. Please report it."
        )


def weights_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of all tensors of a directory: other weights at the same path are noticed."""
    reader = TensorReader(directory)
    digest = hashlib.sha256()
    for name in reader.names:
        digest.update(f"{name}:{tensor_hash(reader.read(name))}\n".encode())
    return digest.hexdigest()


def _put_in_place(aside: Path, directory: Path) -> None:
    """Rename; an older export is deleted only once the new one stands, and put back where it cannot."""
    former = directory.with_name(f".{directory.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if directory.exists():
        directory.rename(former)
    try:
        aside.rename(directory)
    except OSError:
        if former.exists():
            former.rename(directory)
        raise
    sync_to_disk(directory.parent)
    shutil.rmtree(former, ignore_errors=True)


def compare_models(
    directory: Path, number: int, reopened: Any, model: Any, inputs: dict[str, Tensor], *, narrow: bool
) -> None:
    """Compare logits, and greedy text where they are exact, of a reopened model and the one that was saved.

    Args:
        directory: Of the former, for messages.
        number: Of the probe, for messages.
        reopened: In evaluation mode.
        model: In evaluation mode.
        inputs: For both.
        narrow: Whether either was rounded to 16 bits.

    Raises:
        CheckpointError: they differ.
    """
    reopened.to(model.device)
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    with torch.no_grad():
        theirs, ours = (one(**inputs, use_cache=False).logits for one in (reopened, model))
        tolerance = 0.1 if narrow else 1e-4
        worst = float((theirs - ours).abs().max())
        if not worst <= tolerance * max(1.0, float(theirs.abs().max())):
            raise CheckpointError(
                f"{directory}: logits differ by {worst:g} from the model's on probe {number}. Please report it."
            )
        texts = [
            one.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()
            for one in (reopened, model)
        ]
    if texts[0] != texts[1] and not narrow:
        raise CheckpointError(
            f"{directory}: greedy tokens {texts[0]} differ from the model's {texts[1]} on probe {number}. Please report it."
        )


def probe_inputs(processor: Any) -> list[dict[str, Tensor]]:
    """A text and an image, encoded by the reopened processor itself."""
    from PIL import Image

    image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    told = [
        [{"type": "text", "text": "What is 2 + 3?"}],
        [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}],
    ]
    return [
        dict(
            processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        )
        for content in told
    ]


def _saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What `save_pretrained` writes: a tied head is not written twice, and a family's files may have a form of their own."""
    state, family = model.state_dict(), family_of(model)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return dict(family.to_file(name, tensor) for name, tensor in state.items())


def _write_weights(model: PreTrainedModel, directory: Path) -> None:
    """As `save_pretrained` does; then, shard by shard, in the form that the family's published files have."""
    family = family_of(model)
    if not family.transposed:
        model.save_pretrained(directory, save_original_format=not family.one_tensor_of_experts)
        return
    model.save_pretrained(directory, max_shard_size=_SHARD)
    for path in weight_files(directory):
        tensors = {name: family.swapped(name, tensor) for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})


def _drop_runtime_settings(path: Path) -> None:
    """Attention implementations are a matter of the machine, not of the model."""
    config = json.loads(path.read_text())
    for section in (config, config["text_config"], config["vision_config"]):
        for name in [name for name in section if "attn_implementation" in name]:
            del section[name]
    path.write_text(json.dumps(config, indent=2) + "\n")
