"""Build one vision-language model out of parts, or load a whole checkpoint; report and prove what came of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from vlmkit.errors import AssemblyError, CheckpointError
from vlmkit.model.families import FAMILIES, Family, as_in_model, family_named, family_of, on_meta
from vlmkit.model.merge import check_tokenizers, merge_configs, refuse_untrainable
from vlmkit.model.parts import part_of, restore_rotary_buffers
from vlmkit.model.report import AssemblyReport, FieldOrigin, Origin, Proof, TensorOrigin
from vlmkit.model.tensors import TensorReader, align_parameters, seeded_generator, tensor_hash, weight_files

MergerInit = Literal["crop", "random"]
_PROOF_TEXT_TOKENS = (1, 17, 160)
_PROOF_GRIDS = ((1, 4, 4), (1, 2, 8), (2, 4, 6))


@dataclass(kw_only=True)
class VLM:
    """A model with where it came from.

    Attributes:
        model: The stock model, on the CPU.
        processor_source: Directory or hub id whose processor belongs to it.
        report: Provenance; None for a whole checkpoint.
        provenance: For `vlmkit.json`: sources and settings as plain values.
    """

    model: PreTrainedModel
    processor_source: str
    report: AssemblyReport | None
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A model without memory, and what fills it: for ranks that keep a part of each tensor.

    Attributes:
        model: On the meta device, tied, its rotary frequencies not yet computed.
        processor_source: See `VLM`.
        provenance: See `VLM`.
        read: Name of a parameter, its first row and the row after the last, to these rows; no other bytes are read.
    """

    model: PreTrainedModel
    processor_source: str
    provenance: dict[str, Any]
    read: Callable[[str, int, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Located:
    """A tensor of the model, the checkpoint and name it is read from, and how it is made of that."""

    name: str
    shape: list[int]
    part: str
    there: str
    origin: Origin


class Assembly:
    """A vision encoder and a language model, made into one vision-language model of the template's family.

    Args:
        vision_encoder: Checkpoint whose vision encoder and merger are used; None: the template's.
        language_model: Checkpoint whose language model is used (a language model, or a vision-language model); None:
            the template's.
        template: Vision-language checkpoint that gives the config, the processor and what is not swapped; None: the
            vision encoder's.
        merger_init: How the last layer of the merger and of each DeepStack merger is made. `crop` copies it where the
            language model has the width it was made for, keeps its first rows where that is narrower, and where that
            is wider keeps all rows and draws the missing ones anew. `random` draws it anew in any case.
        processor: Directory or hub id of the processor; None: the template's.
        seed: Of what is drawn anew.
        prove: Whether training proves the assembly before it starts (`vlmkit-assemble` always does).
    """

    def __init__(
        self,
        *,
        vision_encoder: str | Path | None,
        language_model: str | Path | None,
        template: str | Path | None,
        merger_init: MergerInit,
        processor: str | Path | None,
        seed: int,
        prove: bool,
    ) -> None:
        chosen = template or vision_encoder
        if not chosen:
            raise ValueError("model.template or model.vision_encoder must name a vision-language checkpoint")
        if merger_init not in ("crop", "random"):
            raise ValueError(f"model.merger_init must be crop or random, got {merger_init!r}")
        self.template = _without_tilde(chosen)
        self.vision_encoder = _without_tilde(vision_encoder or chosen)
        self.language_model = _without_tilde(language_model or chosen)
        fallback = "template" if template else "vision_encoder"
        self._keys = {  # the setting that named each part
            "template": fallback,
            "vision_encoder": "vision_encoder" if vision_encoder else fallback,
            "language_model": "language_model" if language_model else fallback,
        }
        self.merger_init: MergerInit = merger_init
        self.processor_source = _without_tilde(processor or chosen)
        self.seed = seed
        self.proves = prove

    def stored_dtype(self) -> torch.dtype:
        """The type that most tensors of the language model have in its files.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        reader = TensorReader(self._place("language_model"))
        return Counter(reader.dtype(name) for name in reader.names).most_common(1)[0][0]

    def build(self, *, dtype: torch.dtype) -> VLM:
        """Assemble: configs merged, model made on the meta device, every tensor read once into its place.

        Raises:
            AssemblyError: the parts do not fit; a tensor is missing, has another shape, or has no place in the model.
            CheckpointError: files are missing or damaged.
        """
        places = {part: self._place(part) for part in ("template", "vision_encoder", "language_model")}
        config, fields = self._merged(places, dtype)
        model = on_meta(config)
        readers = {part: TensorReader(places[part]) for part in ("vision_encoder", "language_model")}
        tensors = [self._fill(model, name, readers, dtype) for name in _wanted(model)]
        self._refuse_leftovers(family_of(model), readers, tensors)
        model.tie_weights()
        restore_rotary_buffers(model)
        model.eval()
        _take_generation_config(model, places["template"])
        report = AssemblyReport(
            sources={part: getattr(self, part) for part in places},
            fields=fields,
            tensors=tensors,
            unused=_unused(readers),
        )
        return VLM(
            model=model,
            processor_source=self.processor_source,
            report=report,
            provenance=self._provenance(dtype, fields, {one.name: one.origin for one in tensors}),
        )

    def config(self) -> PreTrainedConfig:
        """The config of the assembled model, from the parts' configs and tokenizers alone.

        Raises:
            AssemblyError: the parts do not fit.
            CheckpointError: files are missing or damaged.
        """
        places = {part: self._place(part) for part in ("template", "vision_encoder", "language_model")}
        return self._merged(places, torch.float32)[0]

    def weight_places(self) -> dict[str, Path]:
        """Directories whose weights it is made of, by the setting that names them."""
        return {f"model.{part}": self._place(part) for part in ("vision_encoder", "language_model")}

    def sketch(self, *, dtype: torch.dtype) -> Sketch:
        """The same model on the meta device, to be filled with some rows of each tensor: what a rank keeps of it.

        Raises:
            AssemblyError: as `build`.
            CheckpointError: as `build`.
        """
        places = {part: self._place(part) for part in ("template", "vision_encoder", "language_model")}
        config, fields = self._merged(places, dtype)
        model = on_meta(config)
        family = family_of(model)
        readers = {part: TensorReader(places[part]) for part in ("vision_encoder", "language_model")}
        found = {
            name: self._locate(family, name, list(model.get_parameter(name).shape), readers) for name in _wanted(model)
        }
        self._refuse_leftovers(family, readers, list(found.values()))
        model.to(dtype).tie_weights()
        _take_generation_config(model, places["template"])

        def read(name: str, first: int, last: int) -> Tensor:
            return self._rows(found[name], readers, first, last).to(dtype)

        return Sketch(
            model=model,
            processor_source=self.processor_source,
            provenance=self._provenance(dtype, fields, {name: one.origin for name, one in found.items()}),
            read=read,
        )

    def skeleton(self) -> PreTrainedModel:
        """The model that `build` would make, on the meta device: all is checked against the files' headers, none is read.

        Raises:
            AssemblyError: as `build`.
            CheckpointError: as `build`.
        """
        return self.sketch(dtype=torch.float32).model

    def prove(self, vlm: VLM) -> None:
        """Compare with the sources, in fp32: the language model's logits on text, the vision encoder's features.

        Both sides are rounded to the type of the assembled weights first. The source is loaded by the stock classes, so
        for this while memory holds the assembled model and one source after the other, each in fp32.

        Fills in `vlm.report.proofs`. The model's weights are the same afterwards, bit for bit.

        Raises:
            AssemblyError: a comparison failed.
        """
        assert vlm.report is not None
        proofs = [_prove_tensors(vlm)]
        if _on_meta(vlm.model):  # nothing could be computed with it
            vlm.report.proofs = proofs
            raise AssemblyError(
                f"The assembled model failed its proof: {proofs[0].claim} ({proofs[0].detail}). Check the parts' files."
            )
        dtype = vlm.model.dtype
        vlm.model.float()  # rotary frequencies are in fp32 already: they are proved as they were built
        align_parameters(vlm.model)
        try:
            proofs[:0] = [self._prove_language(vlm, dtype), self._prove_vision(vlm, dtype)]
        finally:
            cast(Any, vlm.model).to(dtype)  # widening and narrowing again changes nothing
            restore_rotary_buffers(vlm.model)
        vlm.report.proofs = proofs
        if failed := [proof for proof in proofs if not proof.holds]:
            raise AssemblyError(
                f"The assembled model failed its proof: {failed[0].claim} ({failed[0].detail}). Please report it."
            )

    def _place(self, part: str) -> Path:
        return resolve(getattr(self, part), key=f"model.{self._keys[part]}")

    def _merged(self, places: dict[str, Path], dtype: torch.dtype) -> tuple[PreTrainedConfig, list[FieldOrigin]]:
        template_config = _read_config(places["template"])
        template = template_config.to_dict()
        vision_source, language_source = _read_config(places["vision_encoder"]), _read_config(places["language_model"])
        if not hasattr(vision_source, "vision_config"):
            raise AssemblyError(
                f"model.vision_encoder: {self.vision_encoder} is a {vision_source.model_type}, which has no vision encoder. Name a vision-language checkpoint."
            )
        tied = bool(language_source.tie_word_embeddings)
        language = getattr(language_source, "text_config", language_source).to_dict()
        if "text_config" not in template:
            raise AssemblyError(
                f"model.template: {self.template} is a {template.get('model_type')}, not a vision-language model. Name one."
            )
        merged, fields = merge_configs(
            template,
            vision_source.vision_config.to_dict(),
            language,
            tied=tied,
            dtype=str(dtype).removeprefix("torch."),
        )
        if self.processor_source != self.language_model:
            self._check_tokenizers(places["language_model"], rows=language["vocab_size"])
        return type(template_config)(**merged), fields

    def _check_tokenizers(self, language_model: Path, *, rows: int) -> None:
        if not any((language_model / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise AssemblyError(
                f"model.language_model: {self.language_model} holds no tokenizer (tokenizer.json), so it cannot be seen whether "
                "its token ids are the template's. Download the whole checkpoint."
            )
        try:
            wanted = AutoTokenizer.from_pretrained(self.processor_source, trust_remote_code=False)
            found = AutoTokenizer.from_pretrained(language_model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise AssemblyError(
                f"The parts' tokenizers cannot be compared: {str(error).splitlines()[0]}. Download both checkpoints whole."
            ) from error
        special = {token.content for token in wanted.added_tokens_decoder.values() if token.special}
        check_tokenizers(wanted.get_vocab(), found.get_vocab(), special=special, rows=rows)

    def _locate(self, family: Family, name: str, shape: list[int], readers: dict[str, TensorReader]) -> _Located:
        """Where a tensor of the model comes from, and how."""
        part = "vision_encoder" if name.startswith("model.visual.") else "language_model"
        reader = readers[part]
        there = _name_in(reader, name)
        if there is None:
            raise AssemblyError(
                f"model.{part}: {getattr(self, part)} has no tensor for {name}. It is not the model its config describes: compare config.json with the weights."
            )
        found = reader.shape(there)
        resizable = part_of(name) == "merger" and family.layout.merger_output in name
        if found == family.stored_shape(name, shape):
            found = shape
        if found != shape and not (resizable and found[1:] == shape[1:]):
            raise AssemblyError(
                f"model.{part}: tensor {there} has shape {found}, the model needs {shape}. Compare config.json with the weights."
            )
        origin: Origin = "copied"
        if resizable and self.merger_init == "random":
            origin = "new"
        elif found != shape:
            origin = "cropped" if found[0] > shape[0] else "extended"
        return _Located(name=name, shape=shape, part=part, there=there, origin=origin)

    def _rows(self, one: _Located, readers: dict[str, TensorReader], first: int, last: int) -> Tensor:
        """Rows of a tensor of the model, read or drawn."""
        reader = readers[one.part]
        if one.origin in ("copied", "cropped"):
            return as_in_model(reader.read(one.there, (first, last)), one.shape)
        drawn = self._drawn(one.name, one.shape)
        if one.origin == "extended":
            source = reader.read(one.there)
            drawn = drawn.to(source.dtype)
            drawn[: len(source)] = source
        return drawn[first:last]

    def _fill(self, model: nn.Module, name: str, readers: dict[str, TensorReader], dtype: torch.dtype) -> TensorOrigin:
        """Put one tensor into the model and say where it came from."""
        shape = list(model.get_parameter(name).shape)
        one = self._locate(family_of(model), name, shape, readers)
        tensor = self._rows(one, readers, 0, shape[0]).to(dtype)
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=True))
        source = "" if one.origin == "new" else f"{one.part}:{readers[one.part].file(one.there)}:{one.there}"
        return TensorOrigin(name=name, shape=tuple(shape), origin=one.origin, source=source, sha256=tensor_hash(tensor))

    def _refuse_leftovers(
        self, family: Family, readers: dict[str, TensorReader], tensors: Sequence[TensorOrigin | _Located]
    ) -> None:
        taken = {one.name for one in tensors}
        for part, reader in readers.items():
            _refuse_leftovers(reader, part, taken, family, key=f"model.{part}", source=getattr(self, part))

    def _provenance(self, dtype: torch.dtype, fields: list[FieldOrigin], tensors: dict[str, Origin]) -> dict[str, Any]:
        return {
            "sources": {part: getattr(self, part) for part in ("template", "vision_encoder", "language_model")},
            "merger_init": self.merger_init,
            "seed": self.seed,
            "dtype": str(dtype),
            "fields": {one.name: one.source for one in fields},
            "tensors": dict(tensors),
        }

    def _drawn(self, name: str, shape: list[int]) -> Tensor:
        """Normal with deviation 1 / sqrt(inputs) for a matrix, zero for a bias; from the seed and the name alone."""
        if len(shape) == 1:
            return torch.zeros(shape)
        return torch.randn(shape, generator=seeded_generator(self.seed, name)) / math.sqrt(shape[1])

    def _prove_language(self, vlm: VLM, dtype: torch.dtype) -> Proof:
        source = self._place("language_model")
        with _quiet():
            whole = hasattr(_read_config(source), "text_config")
            kind: Any = AutoModelForImageTextToText if whole else AutoModelForCausalLM
            stock = kind.from_pretrained(source, dtype=dtype, trust_remote_code=False)
        stock = stock.float().eval()
        align_parameters(stock)
        if whole:
            restore_rotary_buffers(stock)
        else:
            _restore_text_rotary(stock)
        generator = torch.Generator().manual_seed(self.seed)
        worst = 0.0
        for length in _PROOF_TEXT_TOKENS:
            tokens = torch.randint(0, stock.config.get_text_config().vocab_size, (1, length), generator=generator)
            mask = torch.ones_like(tokens)
            with torch.no_grad():
                ours = vlm.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
                theirs = stock(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            worst = max(worst, float((ours - theirs).abs().max()))
        return Proof(
            claim="text-only logits equal the language model's bit for bit in fp32",
            holds=worst == 0.0,
            detail=f"texts of {', '.join(map(str, _PROOF_TEXT_TOKENS))} tokens, largest difference {worst:g}",
        )

    def _prove_vision(self, vlm: VLM, dtype: torch.dtype) -> Proof:
        source = self._place("vision_encoder")
        stock = _stock_vision_encoder(source, dtype)
        vision: Any = stock.config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        generator = torch.Generator().manual_seed(self.seed)
        grids = torch.tensor(_PROOF_GRIDS)
        patches = torch.randn(int(grids.prod(-1).sum()), width, generator=generator)
        with torch.no_grad():
            ours = cast(Any, vlm.model.model.visual)(patches, grid_thw=grids, return_dict=True).last_hidden_state
            theirs = stock(patches, grid_thw=grids, return_dict=True).last_hidden_state
        worst = float((ours - theirs).abs().max())
        return Proof(
            claim="vision features before the merger equal the source's",
            holds=worst == 0.0,
            detail=f"{len(grids)} random images and videos, largest difference {worst:g}",
        )


class WholeCheckpoint:
    """A vision-language checkpoint as it is.

    Args:
        path: Directory or hub id.
        processor: Directory or hub id of the processor; None: the checkpoint's.
    """

    proves = False

    def __init__(self, *, path: str | Path | None, processor: str | Path | None) -> None:
        if not path:
            raise ValueError("model.path must name a vision-language checkpoint: a directory or hub id")
        self.path = _without_tilde(path)
        self.processor_source = _without_tilde(processor or path)

    def build(self, *, dtype: torch.dtype) -> VLM:
        """Load it.

        Raises:
            AssemblyError: it is of another family.
            CheckpointError: files are missing or damaged.
        """
        sketch = self.sketch(dtype=dtype)
        for name in _wanted(sketch.model):
            module, _, leaf = name.rpartition(".")
            rows = sketch.read(name, 0, len(sketch.model.get_parameter(name)))
            setattr(sketch.model.get_submodule(module), leaf, nn.Parameter(rows))
        sketch.model.tie_weights()
        restore_rotary_buffers(sketch.model)
        sketch.model.eval()
        return VLM(
            model=sketch.model, processor_source=self.processor_source, report=None, provenance=sketch.provenance
        )

    def config(self) -> PreTrainedConfig:
        """Its config.

        Raises:
            AssemblyError: it is of another family.
            CheckpointError: files are missing or damaged.
        """
        config = _read_config(resolve(self.path, key="model.path"))
        family_named(config.model_type, key="model.path", source=self.path)
        refuse_untrainable(config.get_text_config().to_dict(), key="model.path", source=self.path)
        return config

    def weight_places(self) -> dict[str, Path]:
        """The directory of its weights, by the setting that names it."""
        return {"model.path": resolve(self.path, key="model.path")}

    def sketch(self, *, dtype: torch.dtype) -> Sketch:
        """The same model on the meta device, to be filled with some rows of each tensor: what a rank keeps of it.

        Raises:
            AssemblyError: as `build`.
            CheckpointError: as `build`.
        """
        config, place = self.config(), resolve(self.path, key="model.path")
        model = on_meta(config)
        reader, family = TensorReader(place), family_of(model)
        shapes = {name: list(model.get_parameter(name).shape) for name in _wanted(model)}
        found: dict[str, str] = {}
        for name, shape in shapes.items():
            there = _name_in(reader, name)
            if there is None or reader.shape(there) not in (shape, family.stored_shape(name, shape)):
                raise AssemblyError(
                    f"model.path: {self.path} has no tensor of the right shape for {name}. Compare its config.json with the weights."
                )
            found[name] = there
        for part in ("vision_encoder", "language_model"):
            _refuse_leftovers(reader, part, set(found), family, key="model.path", source=self.path)
        model.to(dtype).tie_weights()
        _take_generation_config(model, place)
        return Sketch(
            model=model,
            processor_source=self.processor_source,
            provenance={"sources": {"path": self.path}, "dtype": str(dtype)},
            read=lambda name, first, last: as_in_model(reader.read(found[name], (first, last)), shapes[name]).to(dtype),
        )

    def skeleton(self) -> PreTrainedModel:
        """The model that `build` would make, on the meta device: all is checked against the files' headers, none is read.

        Raises:
            AssemblyError: as `build`.
            CheckpointError: as `build`.
        """
        return self.sketch(dtype=torch.float32).model


def resolve(source: str, *, key: str) -> Path:
    """The local directory of a checkpoint; a hub id is downloaded (safetensors and settings only) into the hub's cache.

    Raises:
        CheckpointError: neither a directory nor a reachable hub id.
    """
    if (path := Path(source).expanduser()).is_dir():
        return path.resolve()
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(
            f"{key}: {source!r} is no directory. Check the path, or give a hub id like Qwen/Qwen3-0.6B."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{key}: {source!r} is neither a directory here nor to be had from the hub ({str(error).splitlines()[0]}). "
            "Download it on a machine with access and give the directory."
        ) from error


def _without_tilde(source: str | Path) -> str:
    """A path or hub id as other libraries take it: they do not know what ~ means."""
    text = str(source)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _read_config(place: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{place}: no readable config.json ({str(error).splitlines()[0]}). Copy or download the checkpoint again."
        ) from error


def _wanted(model: nn.Module) -> list[str]:
    """Names of the parameters to fill; a tied head is filled by its embeddings."""
    tied = bool(cast(Any, model).config.tie_word_embeddings)
    return [
        name for name, _ in model.named_parameters(remove_duplicate=False) if not (tied and name == "lm_head.weight")
    ]


def _name_in(reader: TensorReader, name: str) -> str | None:
    """Where a checkpoint keeps a tensor: vision-language models of today and before, and plain language models."""
    bare = name.removeprefix("model.")
    guesses = [name, bare, bare.replace("language_model.", "model.", 1)]
    return next((guess for guess in guesses if guess in reader), None)


def _refuse_leftovers(
    reader: TensorReader, part: str, taken: set[str], family: Family, *, key: str, source: str
) -> None:
    """Refuse a checkpoint that holds more of a part than the model takes: its config describes another model.

    A head that was saved though it is tied, rotary frequencies, what no model of the family takes, and tensors of the
    model that are drawn anew instead (they count as `taken`) are no surprise.
    """
    expected = {_name_in(reader, name) for name in taken} | {"lm_head.weight"}
    left = [
        name
        for name in reader.names
        if name.removeprefix("model.").startswith("visual.") == (part == "vision_encoder")
        and name not in expected
        and not name.endswith("inv_freq")
        and not name.startswith(family.unread)
    ]
    if left:
        raise AssemblyError(
            f"{key}: {source} holds {len(left)} tensors that the model has no place for (first: {left[0]}). It is not the "
            "model its config describes: compare config.json with the weights."
        )


def _stock_vision_encoder(place: Path, dtype: torch.dtype) -> Any:
    """The source's vision encoder in fp32, read by the safetensors library and without its language model."""
    config = _read_config(place)
    stock = FAMILIES[config.model_type].load_vision(config.vision_config)
    state: dict[str, Tensor] = {}
    for path in weight_files(place):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                if name.removeprefix("model.").startswith("visual."):
                    state[name.split("visual.", 1)[1]] = file.get_tensor(name).to(dtype)
    stock.load_state_dict(state)
    align_parameters(stock)
    return stock.float().eval()


def _unused(readers: dict[str, TensorReader]) -> dict[str, dict[str, int]]:
    unused: dict[str, dict[str, int]] = {}
    for part, reader in readers.items():
        left = Counter(".".join(name.split(".")[:2]) for name in reader.names if not reader.reads[name])
        if left:
            unused[part] = dict(sorted(left.items()))
    return unused


def _take_generation_config(model: PreTrainedModel, place: Path) -> None:
    if (place / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(place)


def _on_meta(model: nn.Module) -> set[str]:
    """Names of the tensors that have no memory."""
    return {name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta}


def _prove_tensors(vlm: VLM) -> Proof:
    """No tensor lacks memory, and each is the one that the report tells of, by its hash."""
    assert vlm.report is not None
    told = {tensor.name: tensor.sha256 for tensor in vlm.report.tensors}
    wanted = _wanted(vlm.model)
    on_meta = _on_meta(vlm.model)
    faults = {
        "unexplained": sorted(set(wanted) ^ told.keys()),
        "not filled": sorted(on_meta),
        "changed since": [
            name
            for name in wanted
            if name in told and name not in on_meta and tensor_hash(vlm.model.get_parameter(name)) != told[name]
        ],
    }
    found = "".join(f", {len(names)} {fault} (first: {names[0]})" for fault, names in faults.items() if names)
    return Proof(
        claim="every tensor is filled and its origin told", holds=not found, detail=f"{len(told)} tensors{found}"
    )


def _restore_text_rotary(stock: Any) -> None:
    """A cast from bf16 leaves rotary frequencies rounded; the comparison needs them as trained."""
    rotary = stock.model.rotary_emb
    frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
    rotary.inv_freq = frequencies.float()


@contextmanager
def _quiet() -> Generator[None]:
    """Without transformers' loading bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
