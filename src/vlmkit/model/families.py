"""The families of models that vlmkit knows: one entry each, with everything that sets it apart from the others.

What a family needs elsewhere is how its processor lays out media (`vlmkit.processing.processor`). `docs/families.md` says
how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vlmkit.errors import AssemblyError

Part = Literal["vision_encoder", "merger", "language_model"]
PARTS: tuple[Part, ...] = ("vision_encoder", "merger", "language_model")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of one architecture.

    Attributes:
        prefixes: Beginning of a parameter name and the part it belongs to; the longest that fits decides.
        blocks: Path of the module list whose entries are checkpointed and sharded one by one, per part.
        mergers: Paths of the modules that make up the merger.
        merger_output: In the names of the merger's layers that give features of the language model's width.
    """

    prefixes: Mapping[str, Part]
    blocks: Mapping[Part, str]
    mergers: tuple[str, ...]
    merger_output: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """What sets one family apart.

    Attributes:
        name: `model_type` of its `config.json`.
        model_class: Name in transformers of the whole model.
        vision_class: Of its vision encoder with the merger.
        layout: Where its parts live.
        language_models: `model_type` of language models that its own holds exactly, tensor by tensor, its own first.
            One entry: its checkpoints are loaded whole.
        unfit: `model_type` of language models that one might try, and why its own cannot hold them.
        learned_positions: Learned positions are added to the patches.
        deepstack: Features of middle vision blocks are added to the first layers of the language model.
        windows: Most vision blocks attend inside windows.
        heads_fill_width: The heads of the language model are together as wide as it is; their size is no setting.
        linear_attention: Some layers of the language model carry a state along the row.
        experts: Some layers of the language model send each token to a few of many MLPs.
        file_prefixes: Beginnings of names that `save_pretrained` writes in another way, and that way.
        transposed: Ends of names whose tensors lie in published files with their last two dimensions swapped. Other readers
            than transformers know no other form; `save_pretrained` writes the model's own.
        one_tensor_of_experts: Published files hold the matrices of a layer's experts in one tensor, as the model does;
            `save_pretrained` would write them one by one. Both forms are read.
        unread: Beginnings of names that files hold and no model of transformers takes.
        liger: The norms and MLPs of its language model are the ones that Liger's kernels compute.
    """

    name: str
    model_class: str
    vision_class: str
    layout: Layout
    language_models: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict[str, str])
    learned_positions: bool = False
    deepstack: bool = False
    windows: bool = False
    heads_fill_width: bool = False
    linear_attention: bool = False
    experts: bool = False
    file_prefixes: Mapping[str, str] = field(default_factory=dict[str, str])
    transposed: tuple[str, ...] = ()
    one_tensor_of_experts: bool = False
    unread: tuple[str, ...] = ()
    liger: bool = False

    def make(self, config: Any) -> Any:
        """The model that a config describes, its weights drawn where there is memory for them."""
        return _from_transformers(self.model_class)(config)

    def load_vision(self, config: Any) -> Any:
        """The stock vision encoder that a `vision_config` describes."""
        return _from_transformers(self.vision_class)(config)

    def stored_shape(self, name: str, shape: list[int]) -> list[int]:
        """Shape that a tensor of the model has in the files of its family."""
        return [*shape[:-2], shape[-1], shape[-2]] if name.endswith(self.transposed or ("\n",)) else shape

    def to_file(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Name and tensor of the model as they lie in files."""
        prefix = next((prefix for prefix in self.file_prefixes if name.startswith(prefix)), "")
        return self.file_prefixes.get(prefix, "") + name.removeprefix(prefix), self.swapped(name, tensor)

    def swapped(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in the form that the family's files have; of the model's own form where it is square, as transformers."""
        same = list(tensor.shape) == self.stored_shape(name, list(tensor.shape))
        return tensor if same else tensor.transpose(-1, -2).contiguous()


_PREFIXES: dict[str, Part] = {
    "model.visual.": "vision_encoder",
    "model.visual.merger.": "merger",
    "model.language_model.": "language_model",
    "lm_head.": "language_model",
}
_BLOCKS: dict[Part, str] = {"vision_encoder": "model.visual.blocks", "language_model": "model.language_model.layers"}
_PLAIN = Layout(prefixes=_PREFIXES, blocks=_BLOCKS, mergers=("model.visual.merger",), merger_output=".linear_fc2.")
_WITH_DEEPSTACK = Layout(
    prefixes={**_PREFIXES, "model.visual.deepstack_merger_list.": "merger"},
    blocks=_BLOCKS,
    mergers=("model.visual.merger", "model.visual.deepstack_merger_list"),
    merger_output=".linear_fc2.",
)
_NO_NORMS = (
    "its queries and keys are not normalised, and the template's attention normalises them: no weight of such a norm "
    "leaves a vector as it was. Use a Qwen2.5-VL checkpoint as model.vision_encoder"
)
_NORMS = (
    "its queries and keys are normalised, and the template's attention has no place for those norms. Use a Qwen3-VL "
    "checkpoint as model.vision_encoder"
)
_EXPERTS = (
    "its layers hold many MLPs, and the template's hold one. Such models are trained whole: model=qwen3_vl_30b_a3b"
)
_DENSE = (
    "its layers hold one MLP, and the template's hold many. Use a dense Qwen3-VL checkpoint as model.vision_encoder"
)

_EXPERTS_3_5 = (
    "its layers hold many MLPs, and the template's hold one. Such models are trained whole: model=qwen3_5_35b_a3b"
)
_DENSE_3_5 = (
    "its layers hold one MLP, and the template's hold many. Use a dense Qwen3.5 checkpoint as model.vision_encoder"
)

QWEN3_VL = Family(
    name="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    vision_class="Qwen3VLVisionModel",
    layout=_WITH_DEEPSTACK,
    language_models=("qwen3_vl_text", "qwen3"),
    unfit={
        "qwen2": _NO_NORMS,
        "qwen2_5_vl_text": _NO_NORMS,
        "qwen3_moe": _EXPERTS,
        "qwen3_vl_moe_text": _EXPERTS,
    },
    learned_positions=True,
    deepstack=True,
    liger=True,
)
QWEN3_VL_MOE = Family(
    name="qwen3_vl_moe",
    model_class="Qwen3VLMoeForConditionalGeneration",
    vision_class="Qwen3VLMoeVisionModel",
    layout=_WITH_DEEPSTACK,
    language_models=("qwen3_vl_moe_text",),
    unfit={"qwen3": _DENSE, "qwen3_vl_text": _DENSE},
    learned_positions=True,
    deepstack=True,
    experts=True,
    transposed=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
)
QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    vision_class="Qwen2_5_VisionTransformerPretrainedModel",
    layout=Layout(
        prefixes=_PREFIXES,
        blocks=_BLOCKS,
        mergers=("model.visual.merger",),
        merger_output=".mlp.2.",
    ),
    language_models=("qwen2_5_vl_text", "qwen2"),
    unfit={"qwen3": _NORMS, "qwen3_vl_text": _NORMS},
    windows=True,
    heads_fill_width=True,
    file_prefixes={"model.visual.": "visual.", "model.language_model.": "model."},
)
QWEN3_5 = Family(
    name="qwen3_5",
    model_class="Qwen3_5ForConditionalGeneration",
    vision_class="Qwen3_5VisionModel",
    layout=_PLAIN,
    language_models=("qwen3_5_text",),
    unfit={"qwen3_5_moe_text": _EXPERTS_3_5},
    learned_positions=True,
    linear_attention=True,
    unread=("mtp.",),
)
QWEN3_5_MOE = Family(
    name="qwen3_5_moe",
    model_class="Qwen3_5MoeForConditionalGeneration",
    vision_class="Qwen3_5MoeVisionModel",
    layout=_PLAIN,
    language_models=("qwen3_5_moe_text",),
    unfit={"qwen3_5_text": _DENSE_3_5},
    learned_positions=True,
    linear_attention=True,
    experts=True,
    one_tensor_of_experts=True,
    unread=("mtp.",),
)
FAMILIES = {family.name: family for family in (QWEN3_VL, QWEN3_VL_MOE, QWEN2_5_VL, QWEN3_5, QWEN3_5_MOE)}
"""Every family, by the `model_type` of its `config.json`."""


def as_in_model(tensor: Tensor, shape: list[int]) -> Tensor:
    """A tensor of a file, or some of its rows, as the model has it.

    As transformers does: what lies there in the model's own shape is taken as it is.

    Args:
        tensor: As read.
        shape: Of the model's whole tensor.
    """
    return tensor if list(tensor.shape[1:]) == shape[1:] else tensor.transpose(-1, -2).contiguous()


def family_named(model_type: object, *, key: str, source: str) -> Family:
    """The family of a checkpoint.

    Args:
        model_type: Of its config.
        key: Setting that names the checkpoint, such as `model.path`.
        source: The checkpoint, as that setting names it.

    Raises:
        AssemblyError: there is none.
    """
    if (family := FAMILIES.get(str(model_type))) is None:
        raise AssemblyError(f"{key}: {source} is a {model_type}; supported: {', '.join(FAMILIES)}.")
    return family


def family_of(model: nn.Module) -> Family:
    """The family of a model."""
    return FAMILIES[cast(Any, model).config.model_type]


def on_meta(config: Any) -> Any:
    """The model that a config describes, without memory for its weights."""
    with torch.device("meta"):
        return FAMILIES[config.model_type].make(config)


def _from_transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
