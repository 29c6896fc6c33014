"""Tensors that several ranks share: checkpoints of them, their sums, and the whole of them on one rank.

A sharded checkpoint is a directory with the same name as a single file would have. It holds trained tensors and the
optimiser's state of them in PyTorch's distributed format, and `meta.pt` with everything else.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlmkit.errors import CheckpointError
from vlmkit.storage import sync_to_disk
from vlmkit.training.state import META_FILE

_TENSORS_FILE = ".metadata"
Merge = Callable[[Iterable[tuple[str, Tensor]]], dict[str, Tensor]]
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def is_sharded(path: Path) -> bool:
    """Whether a path is a finished sharded checkpoint."""
    return (path / META_FILE).is_file() and (path / _TENSORS_FILE).is_file()


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, sharded or not; a directory goes under another name first, so that it never stands half."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    going = path.with_name(f".{path.name}.going")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of what is trained; a tied head comes once, with the embeddings."""
    return ((name, p.detach()) for name, p in module.named_parameters() if p.requires_grad)


def save_shards(path: Path, *, module: nn.Module, optimizers: Sequence[Optimizer], rest: dict[str, Any]) -> None:
    """Write a sharded checkpoint; every rank must call.

    Args:
        path: Directory; what is left of an interrupted writing there is removed.
        module: Its trained parameters are written.
        optimizers: Their state is written.
        rest: Plain values and small tensors, written by rank 0.
    """
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    save(_state(module, optimizers), checkpoint_id=path)
    if first:
        torch.save(rest, path / META_FILE)
        sync_to_disk(path / META_FILE)
        sync_to_disk(path)
    dist.barrier()


def load_shards(path: Path, *, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Read a sharded checkpoint into a sharded model, on any number of ranks; every rank must call.

    Returns:
        The rest, and under `state_dict` the names of what was read (their values are in the model already).

    Raises:
        CheckpointError: not a sharded checkpoint, or of other tensors.
    """
    check_form(path, shared=True)
    rest: dict[str, Any] = torch.load(path / META_FILE, map_location="cpu", weights_only=True)
    state = _state(module, optimizers)
    told = check_names(path, set(state["model"]))
    if not any(name.startswith("averages.") for name in told):
        state.pop("averages", None)  # averaging starts with this run
    load(state, checkpoint_id=path)
    for number, optimizer in enumerate(optimizers):
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[f"optimizer_{number}"], options=_FLAT)
    return {**rest, "state_dict": dict.fromkeys(state["model"]), "optimizer_states": []}


def load_whole(path: Path, module: nn.Module) -> None:
    """Read the trained tensors of a sharded checkpoint into a model that is not sharded, in one process.

    Raises:
        CheckpointError: of other tensors.
    """
    state = dict(trained_parameters(module))
    check_names(path, set(state))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load({"model": state}, checkpoint_id=path, no_dist=True)


def check_form(path: Path, *, shared: bool) -> None:
    """Make sure that a checkpoint is of the form that this run reads.

    Args:
        path: A checkpoint.
        shared: Whether ranks share the model (`trainer=fsdp`).

    Raises:
        CheckpointError: it is of the other form, or a sharded one that is not whole.
    """
    if path.is_dir() and not is_sharded(path):
        raise CheckpointError(
            f"{path}: not a whole sharded checkpoint (it lacks {META_FILE} or {_TENSORS_FILE}). Resume from another one."
        )
    if path.is_dir() != shared:
        wrote, reads = ("trainer=single or trainer=ddp", "trainer=fsdp") if shared else ("trainer=fsdp", "this trainer")
        raise CheckpointError(
            f"{path}: was written by {wrote} and cannot be resumed with {reads}. Resume it with {wrote} on any number of "
            "devices, or start a new run from its exported weights: init_from=."
        )


def check_names(path: Path, wanted: set[str]) -> set[str]:
    """Make sure that a sharded checkpoint holds exactly these trained tensors; names of all that it holds.

    Raises:
        CheckpointError: it does not; another freeze policy or model wrote it.
    """
    told = FileSystemReader(path).read_metadata().state_dict_metadata
    found = {name.removeprefix("model.") for name in told if name.startswith("model.")}
    if found != wanted:
        raise CheckpointError(
            f"{path}: holds {len(found - wanted)} tensors that are not trained here "
            f"(first: {min(found - wanted, default='-')}) and lacks {len(wanted - found)} that are "
            f"(first: {min(wanted - found, default='-')}). Another freeze= or model= wrote it: set them back, or start a new run with init_from=."
        )
    return set(told)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every rank must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def any_rank(flags: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Flags raised on any rank, where the tensors they tell of are sharded; every rank must call."""
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        flags = flags.to(torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags.bool()


def gather_model(hf: Any, *, merge: Merge | None = None) -> Any | None:
    """A model with memory of its own and all tensors whole, on the CPU of rank 0.

    Tensor by tensor: a rank holds one whole tensor at a time, rank 0 the model. Every rank must call.

    Args:
        hf: A stock model, sharded or not, with adapters or without.
        merge: Makes the plain model's tensors out of those of a model with adapters.

    Returns:
        `hf` itself where nothing of it is sharded or to be merged; None on other ranks.
    """
    if merge is None and not any(isinstance(parameter, DTensor) for parameter in hf.parameters()):
        return hf
    first = not dist.is_initialized() or dist.get_rank() == 0
    tensors: dict[str, Tensor] = {}
    for name, parameter in hf.named_parameters():
        found = whole(parameter.detach())
        if first:
            tensors[name] = found.cpu()
    if not first:
        return None
    with torch.device("meta"):
        made = type(hf)(hf.config)
    for name, tensor in (merge(tensors.items()) if merge else tensors).items():
        place, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(place), leaf, nn.Parameter(tensor, requires_grad=False))
    return _finished(made, hf)


def _finished(made: Any, hf: Any) -> Any:
    from vlmkit.model.parts import restore_rotary_buffers

    made.tie_weights()
    restore_rotary_buffers(made)
    made.generation_config = hf.generation_config
    return made.eval()


def _state(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Names to tensors that share memory with model and optimisers, whose state is made where there is none yet."""
    state: dict[str, Any] = {"model": dict(trained_parameters(module))}
    if averages := getattr(module, "averages", None):
        state["averages"] = dict(averages)
    for number, optimizer in enumerate(optimizers):
        inner = cast(Optimizer, getattr(optimizer, "_optimizer", optimizer))
        state[f"optimizer_{number}"] = get_optimizer_state_dict(module, inner, options=_FLAT)
    return state
