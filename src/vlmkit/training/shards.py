"""Tensors that several ranks share: checkpoints of them, their sums, and the whole of them on one rank.

A sharded checkpoint is a directory with the same name as a single file would have. It holds trained tensors and the
optimiser's state of them in PyTorch's distributed format, by name, and `meta.pt` with everything else. Either form is
read by either kind of run: `load_shards` takes a rank's part of both, `read_whole` makes a file's content of a directory.
"""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path, PurePath
from pickle import Unpickler, UnpicklingError
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlmkit.errors import CheckpointError
from vlmkit.storage import sync_to_disk
from vlmkit.training.ranks import gather
from vlmkit.training.state import META_FILE, read_content, refused_objects, unreadable

_TENSORS_FILE = ".metadata"
AVERAGES = "averages"
"""Where a checkpoint, of either form, keeps running averages of weights."""
NAMED = "optimizers_by_name"
"""Where `read_whole` puts the optimisers' state: their order is known to the model that it is read into."""
Merge = Callable[[Iterable[tuple[str, Tensor]]], dict[str, Tensor]]
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def is_sharded(path: Path) -> bool:
    """Whether a path is a finished sharded checkpoint."""
    return (path / META_FILE).is_file() and (path / _TENSORS_FILE).is_file()


def is_shared(module: nn.Module) -> bool:
    """Whether ranks share the parameters of a model."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


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

    Raises:
        OSError, CheckpointException: the disk of any rank refuses it; on every rank.
    """

    def begin() -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)

    def finish() -> None:
        torch.save(rest, path / META_FILE)
        sync_to_disk(path / META_FILE)
        sync_to_disk(path)

    _by_first(begin)
    save(_state(module, optimizers), checkpoint_id=path)
    _by_first(finish)


def _by_first(write: Callable[[], object]) -> None:
    """Let rank 0 write; what goes wrong is raised on every rank, so that none waits for another."""
    error = None
    if dist.get_rank() == 0:
        try:
            write()
        except (OSError, RuntimeError) as found:  # torch's writer of archives turns the former into the latter
            error = str(found)
    if (told := gather(error)[0]) is not None:
        raise OSError(told)


def load_shards(path: Path, *, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Read a checkpoint of either form into a sharded model, on any number of ranks; every rank must call.

    Returns:
        The rest, and under `state_dict` the names of what was read (their values are in the model already).

    Raises:
        CheckpointError: not a whole checkpoint, or of other tensors.
    """
    check_whole(path)
    if not path.is_dir():
        return _load_parts(path, module=module, optimizers=optimizers)
    rest = read_content(path / META_FILE, mmap=False)
    state = _state(module, optimizers)
    told = check_names(path, set(state["model"]))
    if not any(name.startswith(f"{AVERAGES}.") for name in told):
        state.pop(AVERAGES, None)  # averaging starts with this run
    _load(state, path)
    for number, optimizer in enumerate(optimizers):
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[f"optimizer_{number}"], options=_FLAT)
    return {**rest, "state_dict": dict.fromkeys(state["model"]), "optimizer_states": []}


def _load_parts(path: Path, *, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Read this rank's part of everything in a checkpoint that is one file."""
    content = read_content(path)
    _put(content, dict(trained_parameters(module)), path=path)
    averages: dict[str, Tensor] = getattr(module, AVERAGES, None) or {}
    if averages and AVERAGES in content:
        _put({"state_dict": content[AVERAGES]}, averages, path=path)
    for optimizer, state in zip(optimizers, content["optimizer_states"], strict=True):
        inner = cast(Optimizer, getattr(optimizer, "_optimizer", optimizer))
        parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        parts = {
            number: {name: _part_of(value, parameters[number]) for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        inner.load_state_dict({**state, "state": parts})
    names = dict.fromkeys(name for name, _ in trained_parameters(module))
    return {**content, "state_dict": names, "optimizer_states": []}


def read_whole(path: Path) -> dict[str, Any]:
    """The content of a sharded checkpoint as a single file would have it, but for the order of the optimisers' state.

    Returns:
        What `meta.pt` holds, `state_dict` (a tied head only with its embeddings), `averages` where there are any, and
        under `NAMED`, for each optimiser, its `state` and `settings` by the name of the parameter.

    Raises:
        CheckpointError: not a whole sharded checkpoint.
    """
    check_whole(path)
    told = read_metadata(path).state_dict_metadata
    flat: dict[str, Any] = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype) if isinstance(kept, TensorStorageMetadata) else None
        for name, kept in told.items()
    }
    planner = _Planner(flatten_state_dict=False, flatten_sharded_tensors=False)  # fills `flat` itself
    _load(flat, path, planner=planner, alone=True)
    rest = read_content(path / META_FILE, mmap=False)
    if averages := _under(flat, AVERAGES):
        rest[AVERAGES] = averages
    optimizers: list[dict[str, Any]] = []
    while found := _under(flat, f"optimizer_{len(optimizers)}"):
        by_name = {"state": _by_name(_under(found, "state")), "settings": _by_name(_under(found, "param_groups"))}
        optimizers.append(by_name)
    return {**rest, "state_dict": _under(flat, "model"), NAMED: optimizers}


def in_order(named: dict[str, Any], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """An optimiser's state by name as the optimiser itself would tell it.

    Args:
        named: As `read_whole` gives it.
        groups: Names of the parameters of each of its groups, in order.
    """
    names = [name for group in groups for name in group]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: entry for name, entry in named["state"].items()},
        "param_groups": [
            {**named["settings"][group[0]], "params": [numbers[name] for name in group]} for group in groups
        ],
    }


def load_weights(path: Path, module: nn.Module, *, averages: bool = False) -> None:
    """Put the trained tensors of a checkpoint of either form into a model; the ranks that share it must all call.

    Args:
        path: A checkpoint.
        module: Has the model; sharded or not.
        averages: Their running averages instead, where the checkpoint has any.

    Raises:
        CheckpointError: of other tensors, or not whole.
    """
    check_whole(path)
    tensors = dict(trained_parameters(module))
    if not path.is_dir():
        content = read_content(path)
        _put(content, tensors, path=path)
        if averages and AVERAGES in content:
            _put({"state_dict": content[AVERAGES]}, tensors, path=path)
        return
    told = check_names(path, set(tensors))
    averaged = averages and any(name.startswith(f"{AVERAGES}.") for name in told)
    _load({AVERAGES if averaged else "model": tensors}, path, alone=not is_shared(module))


def check_whole(path: Path) -> None:
    """Make sure that a directory is a whole sharded checkpoint.

    Raises:
        CheckpointError: it is not.
    """
    if path.is_dir() and not is_sharded(path):
        raise CheckpointError(
            f"{path}: not a whole sharded checkpoint (it lacks {META_FILE} or {_TENSORS_FILE}). Resume from another one."
        )


def check_names(path: Path, wanted: set[str]) -> set[str]:
    """Make sure that a sharded checkpoint holds exactly these trained tensors; names of all that it holds.

    Raises:
        CheckpointError: it does not; another freeze policy or model wrote it.
    """
    told = read_metadata(path).state_dict_metadata
    _check_equal(path, {name.removeprefix("model.") for name in told if name.startswith("model.")}, wanted)
    return set(told)


def _check_equal(path: Path, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{path}: holds {len(found - wanted)} tensors that are not trained here "
            f"(first: {min(found - wanted, default='-')}) and lacks {len(wanted - found)} that are "
            f"(first: {min(wanted - found, default='-')}). Another freeze= or model= wrote it: set them back, or start a new run with init_from=."
        )


def shard_rows(num_rows: int, *, rank: int, num_ranks: int) -> tuple[int, int]:
    """First row of a rank's shard and the row after its last: equal shards, but for the last ones."""
    size = -(-num_rows // num_ranks)
    return min(rank * size, num_rows), min((rank + 1) * size, num_rows)


def reshard(module: nn.Module) -> None:
    """Let go of what a forward without a backward has left whole: FSDP2 keeps the root's own tensors for the backward."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fingerprint(tensor: Tensor) -> int:
    """A cheap number that changes with (almost) any change of the bits this rank holds; one pass, on its device."""
    flat = local_part(tensor.detach()).contiguous().view(-1)
    size = flat.element_size()
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    return int(bits.sum(dtype=torch.int64))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every rank must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def nonfinite_names(module: nn.Module) -> list[str]:
    """Names of trained tensors, and of their averages, that hold NaN or infinity on this rank; one wait for the device."""
    tensors = dict(trained_parameters(module))
    averages: dict[str, Tensor] = getattr(module, AVERAGES, None) or {}
    tensors |= {f"{AVERAGES}.{name}": average for name, average in averages.items()}
    parts = {name: part for name, tensor in tensors.items() if (part := local_part(tensor)).numel()}
    if not parts:
        return []
    # The largest magnitude is NaN where any number is, and infinite where one is: no copy of the tensor is made.
    largest = [torch.linalg.vector_norm(part, torch.inf).float() for part in parts.values()]
    sound = torch.stack(largest).isfinite().tolist()
    return [name for name, finite in zip(parts, sound, strict=True) if not finite]


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
    if merge is None and not is_shared(hf):
        return hf
    first = not dist.is_initialized() or dist.get_rank() == 0
    tensors: dict[str, Tensor] = {}
    for name, parameter in hf.named_parameters():
        found = whole(parameter.detach())
        if first:
            tensors[name] = found.cpu()
    if not first:
        return None
    config = deepcopy(hf.config)
    attention = {part: getattr(config, part)._attn_implementation for part in ("text_config", "vision_config")}
    config._attn_implementation = (
        "sdpa"  # a new model under a name with "flash" makes transformers look for that package
    )
    with torch.device("meta"):
        made = type(hf)(config)
    made.set_attn_implementation(attention)
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
    if averages := getattr(module, AVERAGES, None):
        state[AVERAGES] = dict(averages)
    for number, optimizer in enumerate(optimizers):
        inner = cast(Optimizer, getattr(optimizer, "_optimizer", optimizer))
        state[f"optimizer_{number}"] = get_optimizer_state_dict(module, inner, options=_FLAT)
    return state


def _put(content: dict[str, Any], tensors: dict[str, Tensor], *, path: Path) -> None:
    """Copy what a file holds into tensors of the same names, this rank's rows where they are sharded.

    Raises:
        CheckpointError: the names differ; a tied head may be there beside its embeddings.
    """
    found: dict[str, Tensor] = content["state_dict"]
    tied = {name for name in found if name.endswith("lm_head.weight") and name not in tensors}
    _check_equal(path, set(found) - tied, set(tensors))
    for name, tensor in tensors.items():
        local_part(tensor).copy_(local_part(_part_of(found[name], tensor)))


def _part_of(value: Any, like: Tensor) -> Any:
    """This rank's part of a whole tensor that belongs to a sharded one; whatever else it is stays as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape or not value.ndim:
        return value
    first, last = shard_rows(len(value), rank=like.device_mesh.get_local_rank(), num_ranks=like.device_mesh.size())
    rows = value[first:last].to(like.device, copy=True)  # the file itself is only mapped
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


def _under(flat: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Entries below a prefix, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in flat.items() if name.startswith(start)}


def _by_name(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`parameter.name.setting` to the settings of each parameter."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        name, _, setting = key.rpartition(".")
        found.setdefault(name, {})[setting] = value
    return found


def read_metadata(path: Path) -> Metadata:
    """What PyTorch's `.metadata` says of the tensors of a sharded checkpoint. No code that the file holds is run.

    Raises:
        CheckpointError: the file is damaged, holds other objects than PyTorch's own, or names files elsewhere.
    """
    place = path / _TENSORS_FILE
    try:
        with place.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except UnpicklingError as error:
        raise refused_objects(place, error) from error
    except Exception as error:  # a damaged file can raise anything
        raise unreadable(place, error) from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise unreadable(place, TypeError("it holds no metadata of tensors"))
    for stored in cast(dict[Any, Any], metadata.storage_data).values():
        name = str(getattr(stored, "relative_path", ""))
        if name != Path(name).name:
            raise unreadable(place, ValueError(f"its tensors are in {name!r}, outside of the checkpoint"))
    return metadata


_DCP = "torch.distributed.checkpoint"
_METADATA_OBJECTS = {
    *((f"{_DCP}.metadata", name) for name in ("Metadata", "TensorStorageMetadata", "TensorProperties", "StorageMeta")),
    *((f"{_DCP}.metadata", name) for name in ("ChunkStorageMetadata", "BytesStorageMetadata", "MetadataIndex")),
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}
"""All that PyTorch's writer puts into `.metadata`, beside types of numbers and paths."""


class _MetadataUnpickler(Unpickler):
    """Finds the objects that belong into `.metadata`, and no others."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """An object by name, or an error for any that does not belong there."""
        if (module_name, global_name) in _METADATA_OBJECTS:
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(dtype := vars(torch).get(global_name), torch.dtype):
            return dtype
        if module_name in ("pathlib", "pathlib._local") and global_name in ("PosixPath", "WindowsPath"):
            return PurePath
        raise UnpicklingError(f"{module_name}.{global_name}")


class _Reader(FileSystemReader):
    """PyTorch's reader, which would unpickle whatever `.metadata` holds."""

    def read_metadata(self, *args: Any, **ignored: Any) -> Metadata:  # with `kwargs`, PyTorch would try other files too
        """As the function of this name."""
        return read_metadata(Path(self.path))


class _Planner(DefaultLoadPlanner):
    """PyTorch's planner, which would unpickle whatever stands in the place of a plain value."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Load it without running code, and hand PyTorch a copy of which that is known."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _load(state: dict[str, Any], path: Path, *, planner: DefaultLoadPlanner | None = None, alone: bool = False) -> None:
    """Fill a state with what a sharded checkpoint holds; every rank must call, unless one reads `alone`.

    Raises:
        CheckpointError: it cannot be read, on any rank.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch warns where its distributed format is read by one process, which is what is wanted here.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(state, storage_reader=_Reader(path), planner=planner or _Planner(), no_dist=alone)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise (refused_objects if isinstance(cause, UnpicklingError) else unreadable)(path, cause) from error
