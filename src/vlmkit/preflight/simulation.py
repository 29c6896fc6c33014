"""Simulates training steps on fake tensors: shapes, memory and operations of real ones, without weights or a GPU.

Everything runs on fake CPU tensors, since the backward pass of fake CUDA tensors needs a GPU; the attention is the
variable-length operation that a GPU would run, called by name, because SDPA on a CPU keeps other tensors. Ranks that
share a model are simulated one at a time in PyTorch's fake process group, whose collectives communicate nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import AdamW, Optimizer
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from vlmkit.batch import IGNORE_INDEX, Batch, Sample
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.model.attention import Kernel
from vlmkit.model.families import on_meta
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import set_checkpointing
from vlmkit.preflight.tracking import Kind, StepTracker, Traffic
from vlmkit.processing.processor import Processor, VisionGeometry
from vlmkit.training.flops import count_flops
from vlmkit.training.optim import OptimizerPlan, make_optimizer, parameter_groups
from vlmkit.training.strategy import Sharding

Strategy = Literal["single", "ddp", "fsdp"]
_TYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """Sizes of a sample, without its contents.

    Attributes:
        num_tokens: Visual tokens included.
        num_supervised: Tokens with a label.
        grids: Patches of each image along time, height and width.
    """

    num_tokens: int
    num_supervised: int
    grids: tuple[tuple[int, int, int], ...] = ()

    @property
    def num_patches(self) -> int:
        """Of all images together."""
        return sum(time * height * width for time, height, width in self.grids)


PackShape = tuple[SampleShape, ...]


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """What decides the memory and the work of a rank, besides the pack.

    Attributes:
        config: Of the model.
        freeze: Which parts are trained.
        lora: Adapters; None: there are none.
        optimizer: Rates and decay do not matter here; its kind and its fp32 copies do.
        precision: As `trainer.precision`.
        recompute_vision_encoder, recompute_language_model: As `model.gradient_checkpointing`.
        strategy: What the ranks share.
        num_ranks: Of the run.
        accumulate: Micro-batches of a step.
        averages: Whether a running average of the weights is kept.
        kernel: As `model.attn_implementation`. In a simulation every kernel but `sdpa` stands for those that take a whole row.
    """

    config: PreTrainedConfig
    freeze: FreezePolicy
    lora: Lora | None
    optimizer: OptimizerPlan
    precision: str
    recompute_vision_encoder: bool
    recompute_language_model: bool
    strategy: Strategy
    num_ranks: int
    accumulate: int
    averages: bool = False
    kernel: Kernel = "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return _TYPES.get(self.precision, torch.float32)

    @property
    def mixed(self) -> bool:
        """Whether products run under autocast."""
        return self.precision == "bf16-mixed"


@dataclass(frozen=True, kw_only=True)
class StepSimulation:
    """What a step of one rank takes.

    Attributes:
        peak: Bytes at the fullest moment, by kind.
        resting: Bytes between steps, by kind.
        traffic: Operations of one micro-batch, forward and backward.
        update: Operations of the optimiser's step.
        attention_flops: Of one micro-batch, backward and recomputation included.
        model_flops: What the mathematics of one micro-batch asks for, without recomputation.
        trained_bytes: Of all trained parameters, whole, in their own type.
        parameter_bytes: Of all parameters, whole, in the type that they are computed in.
    """

    peak: dict[Kind, int]
    resting: dict[Kind, int]
    traffic: Traffic
    update: Traffic
    attention_flops: float
    model_flops: float
    trained_bytes: int
    parameter_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Of all kinds together."""
        return sum(self.peak.values())


def simulate_step(setting: StepSetting, shape: PackShape) -> StepSimulation:
    """Run an optimiser step of one rank on fake tensors, with the optimiser's state and the gradients of a step before.

    Args:
        setting: The run.
        shape: The pack of every micro-batch.
    """
    batch = make_batch(shape, setting.config)
    with _fake_ranks(setting) as mesh, FakeTensorMode() as mode:
        fake = {key: mode.from_tensor(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
        return _simulate(setting, mesh, cast(Batch, fake))


def run_step(
    packed: PackedVLM, optimizer: Optimizer, batch: Batch, setting: StepSetting, tracker: StepTracker
) -> tuple[Traffic, Traffic]:
    """One optimiser step in the order in which Lightning's Trainer runs it, on real or on fake tensors.

    Returns:
        Operations of the last micro-batch, and of the optimiser's step.
    """
    num_micro_batches = min(setting.accumulate, 2)
    micro_batch = tracker.traffic()
    for number in range(num_micro_batches):
        before = tracker.traffic()
        with tracker.phase("activations"), _autocast(setting, batch["input_ids"].device.type):
            loss = packed(batch).loss_sum
        if number == 0:
            packed.zero_grad(set_to_none=True)  # those of the step before stand until here
        with tracker.phase("temporary"):
            loss.backward()
        del loss
        micro_batch = tracker.traffic() - before
    before = tracker.traffic()
    with tracker.phase("optimizer"):
        optimizer.step()
    return micro_batch, tracker.traffic() - before


def make_batch(shape: PackShape, config: PreTrainedConfig) -> Batch:
    """A batch of a shape; its ids and patches say nothing.

    Raises:
        ValueError: if a sample has fewer tokens than its images, its supervised tokens and its first token need.
    """
    vision: Any = cast(Any, config).vision_config
    positions: int | None = getattr(vision, "num_position_embeddings", None)
    geometry = VisionGeometry(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        positions_per_side=None if positions is None else math.isqrt(positions),
        window_pixels=getattr(vision, "window_size", None),
    )
    layout = _TokenLayout(geometry=geometry)
    return pack_samples(
        [_make_sample(sample, layout) for sample in shape],
        cast(Processor, layout),
        PackInfo(
            pack=0,
            rows=tuple(range(len(shape))),
            sources=(0,) * len(shape),
            step_supervised_tokens=max(1, sum(sample.num_supervised for sample in shape)),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _TokenLayout:
    """As much of a `Processor` as joining samples asks for."""

    geometry: VisionGeometry
    image_token_id: int = 1
    video_token_id: int = 2


def _make_sample(shape: SampleShape, layout: _TokenLayout) -> Sample:
    geometry = layout.geometry
    num_visual = shape.num_patches // geometry.merge_size**2
    if shape.num_tokens < 1 + num_visual + shape.num_supervised:
        raise ValueError(
            f"a sample of {shape.num_tokens} tokens cannot hold {num_visual} visual and {shape.num_supervised} supervised ones"
        )
    ids = torch.zeros(shape.num_tokens, dtype=torch.int64)
    ids[1 : 1 + num_visual] = layout.image_token_id
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[shape.num_tokens - shape.num_supervised :] = 0
    patch_values = 3 * geometry.patch_size**2
    return Sample(
        input_ids=ids,
        labels=labels,
        position_ids=torch.zeros(4, shape.num_tokens, dtype=torch.int64),
        still_patches=torch.zeros(shape.num_patches, patch_values, dtype=torch.uint8),
        video_patches=torch.zeros(0, patch_values * geometry.temporal_patch_size, dtype=torch.uint8),
        grid_thw=torch.tensor(shape.grids, dtype=torch.int64).reshape(-1, 3),
        is_video=torch.zeros(len(shape.grids), dtype=torch.bool),
    )


def make_packed(setting: StepSetting, mesh: DeviceMesh | None) -> PackedVLM:
    """The model as it is trained, without values: of real tensors, or of fake ones inside `FakeTensorMode`.

    Args:
        setting: The run.
        mesh: Of the ranks that share it; None: it is whole.
    """
    with unset_fake_temporarily():  # modules of fake tensors can neither be cast nor moved: something watches them
        hf = on_meta(copy.deepcopy(setting.config)).to(setting.dtype)
        if setting.lora is not None:
            setting.lora.inject(hf)
    _allocate(hf, "meta" if mesh else "cpu")
    set_checkpointing(
        hf, vision_encoder=setting.recompute_vision_encoder, language_model=setting.recompute_language_model
    )
    if setting.lora is None:
        setting.freeze.apply(hf)
    else:
        setting.lora.choose(hf, setting.freeze)
    packed = PackedVLM(hf, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, kernel=setting.kernel)
    if mesh:
        compute_dtype = torch.bfloat16 if setting.mixed else None
        sharding = Sharding(mesh=mesh, device=torch.device("cpu"), compute_dtype=compute_dtype)
        sharding.apply(packed, lambda name, first, last: _empty_rows(packed, name, last - first))
    adapted = bool(setting.lora and setting.lora.vision_encoder)
    still = setting.freeze.vision_encoder and not adapted
    replace(setting.freeze, vision_encoder=still).set_modes(packed.hf)
    return packed


def _allocate(hf: PreTrainedModel, device: str) -> None:
    """Give every parameter and buffer of a model on the meta device fake memory on a device."""
    for module in hf.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device=device)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device), persistent=False)
    hf.tie_weights()


def _empty_rows(packed: PackedVLM, name: str, num_rows: int) -> Tensor:
    parameter = packed.hf.get_parameter(name)
    return torch.empty(num_rows, *parameter.shape[1:], dtype=parameter.dtype)


def make_optimizer_of(packed: PackedVLM, setting: StepSetting) -> Optimizer:
    """The run's optimiser; AdamW fused, as on CUDA, since the default on a CPU keeps other temporary tensors."""
    groups = parameter_groups(packed.hf.named_parameters(), setting.optimizer)
    make = setting.optimizer.optimizer or partial(AdamW, fused=True)
    return make_optimizer(groups, replace(setting.optimizer, optimizer=make))


def _simulate(setting: StepSetting, mesh: DeviceMesh | None, batch: Batch) -> StepSimulation:
    packed = make_packed(setting, mesh)
    for attention in packed.attention.values():
        attention.assumed = "sdpa" if setting.kernel == "sdpa" else "varlen"
    optimizer = make_optimizer_of(packed, setting)
    trained = [parameter for parameter in packed.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # makes its state; the gradients stay until the next backward pass, as in training
    tracker = StepTracker()
    tracker.follow_step(packed, optimizer, batch)
    exchanged = trained if setting.strategy == "ddp" else []  # DDP copies gradients into buckets
    averages = [torch.empty_like(parameter, dtype=torch.float32) for parameter in trained if setting.averages]
    buckets = [torch.empty_like(parameter) for parameter in exchanged]
    for tensor in averages:
        tracker.follow(tensor, "optimizer")
    for tensor in buckets:
        tracker.follow(tensor, "gathered")
    with tracker:
        traffic, update = run_step(packed, optimizer, batch, setting, tracker)
        peak = dict(tracker.at_peak)
        packed.zero_grad(set_to_none=True)
    count = count_flops(packed.hf)
    return StepSimulation(
        peak=peak,
        resting=dict(tracker.live),
        traffic=traffic,
        update=update,
        attention_flops=count.attention(batch),
        model_flops=count(batch),
        trained_bytes=sum(parameter.nbytes for parameter in trained),
        parameter_bytes=sum(parameter.nbytes for parameter in packed.parameters()),
    )


def _autocast(setting: StepSetting, device_type: str) -> Any:
    if not setting.mixed:
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.autocast(device_type, torch.bfloat16))
    if device_type == "cpu":
        stack.enter_context(_CudaNorms())
    return stack


class _CudaNorms(TorchFunctionMode):
    """Computes layer norms in fp32, as autocast does on CUDA and not on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.layer_norm:
            args = tuple(value.float() if isinstance(value, Tensor) else value for value in args)
            kwargs = {k: v.float() if isinstance(v, Tensor) else v for k, v in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


@contextmanager
def _fake_ranks(setting: StepSetting) -> Generator[DeviceMesh | None]:
    """A mesh over ranks that are not there, of which this process is the first; None where the model is whole."""
    if setting.strategy != "fsdp":
        yield None
        return
    if dist.is_initialized():
        raise RuntimeError("a process group exists already, so ranks cannot be simulated in this process")
    # PyTorch has no public door to its fake process group yet (torch 2.14); its own memory tools use this one.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=setting.num_ranks)
    try:
        yield init_device_mesh("cpu", (setting.num_ranks,))
    finally:
        dist.destroy_process_group()
