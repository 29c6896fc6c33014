"""Read safetensors tensor by tensor, each straight into its own memory and once; hash what was read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmkit.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT_BYTES = 64
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<matrix>gate_proj|up_proj|down_proj)\.weight")
_JOINED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Matrices of a model's experts in one tensor, and those that lie in files expert by expert: one above the other, gate first."""
_Entry = tuple[Path, torch.dtype, list[int], int, int]


class TensorReader:
    """The tensors of one checkpoint directory, of one file or of shards.

    Matrices of experts that lie there one by one (`experts.0.gate_proj.weight`) are read as models hold them: one
    tensor for all experts (`experts.gate_up_proj`), whose rows are experts.

    Reading goes through `pread` into the tensor's memory, not through a mapping of the file: the peak is the model
    itself, and no page of a file lies beside the copy made of it.

    Attributes:
        directory: Where the files are.
        reads: How often each tensor was read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reads: Counter[str] = Counter()
        self._entries: dict[str, _Entry] = {}
        for path in weight_files(directory):
            self._entries.update(_header(path))
        self._joined = _join_experts(self._entries)
        within = {piece for pieces in self._joined.values() for piece in pieces}
        self._names = sorted((self._entries.keys() - within) | self._joined.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._joined or name in self._entries

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return list(self._names)

    def num_bytes(self, name: str) -> int:
        """Size of a tensor, from the header."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor, from the header."""
        if pieces := self._joined.get(name):
            _, _, (rows, columns), _, _ = self._entries[pieces[0]]
            each = len(_JOINED[name.rpartition(".")[2]])
            return [len(pieces) // each, each * rows, columns]
        return self._entries[name][2]

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, from the header."""
        return self._first(name)[1]

    def file(self, name: str) -> str:
        """Name of the file that holds a tensor, or the first piece of one."""
        return self._first(name)[0].name

    def cut_off(self) -> list[tuple[Path, str]]:
        """Files that end before their tensors do, each with the first tensor that is not whole."""
        found: dict[Path, str] = {}
        for name, (path, _, _, start, length) in sorted(self._entries.items(), key=lambda item: item[1][3]):
            if path not in found and start + length > path.stat().st_size:
                found[path] = name
        return list(found.items())

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Read a tensor, or some of its rows, into fresh memory.

        Args:
            name: As in the files.
            rows: First row and the row after the last; None: all. The bytes of other rows are not read.

        Raises:
            CheckpointError: the file ends before it does.
        """
        self.reads[name] += 1
        if pieces := self._joined.get(name):
            experts, height, width = self.shape(name)
            each = len(pieces) // experts
            wanted = pieces if rows is None else pieces[rows[0] * each : rows[1] * each]
            joined = torch.empty((len(wanted) // each, height, width), dtype=self.dtype(name))
            for place, piece in zip(joined.view(len(wanted), height // each, width), wanted, strict=True):
                place.copy_(self._read(piece, None))
            return joined
        return self._read(name, rows)

    def _first(self, name: str) -> _Entry:
        return self._entries[self._joined[name][0] if name in self._joined else name]

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        path, dtype, shape, start, length = self._entries[name]
        if rows is not None:
            row = length // max(1, shape[0])
            shape, start, length = [rows[1] - rows[0], *shape[1:]], start + rows[0] * row, (rows[1] - rows[0]) * row
        tensor = torch.empty(shape, dtype=dtype)
        if length:
            view = memoryview(cast(Any, tensor.view(-1).view(torch.uint8).numpy()))
            handle = os.open(path, os.O_RDONLY)
            try:
                done = 0
                while done < length:
                    got = os.preadv(handle, [view[done:]], start + done)
                    if got == 0:
                        raise CheckpointError(f"{path}: ends within tensor {name}. Copy or download the file again.")
                    done += got
            finally:
                os.close(handle)
        return tensor


def align_parameters(model: nn.Module) -> None:
    """Move parameters that do not start at a multiple of 64 bytes to memory that does.

    Matrix kernels on a CPU round differently by where an operand starts, and tensors mapped from a file start anywhere.
    Two models with the same weights give the same bits only when both are aligned.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes (row-major, in its own dtype)."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu()
    return hashlib.sha256(memoryview(cast(Any, flat.numpy()))).hexdigest()


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for one tensor: no two pairs of seed and name draw the same numbers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        CheckpointError: one is missing, or the index of the shards is damaged.
    """
    if (index := directory / INDEX_FILE).is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error!r}). Copy or download it again.") from error
    else:
        names = ["model.safetensors"]
    paths = [directory / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(
            f"{directory}: lacks {', '.join(missing)}. Weights must be safetensors; download them again or convert them."
        )
    return paths


def _join_experts(entries: Mapping[str, _Entry]) -> dict[str, list[str]]:
    """The tensors that models make of experts' matrices, and the matrices of each in the order they lie in it.

    Those of unlike shapes or types, or with one missing, are left as they are: they are not what they seem.
    """
    found: dict[str, dict[tuple[int, str], str]] = {}
    for name in entries:
        if match := _EXPERT.fullmatch(name):
            found.setdefault(match["experts"], {})[int(match["number"]), match["matrix"]] = name
    joined: dict[str, list[str]] = {}
    for experts, matrices in found.items():
        numbers = range(1 + max(number for number, _ in matrices))
        for tensor, kinds in _JOINED.items():
            wanted = [matrices.get((number, kind)) for number in numbers for kind in kinds]
            pieces = [piece for piece in wanted if piece is not None]
            alike = {(entries[piece][1], tuple(entries[piece][2])) for piece in pieces}
            if len(pieces) == len(wanted) and len(alike) == 1:
                joined[f"{experts}.{tensor}"] = pieces
    return joined


def _header(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
    except (struct.error, ValueError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}). Copy or download it again.") from error
    entries: dict[str, _Entry] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} is of type {entry['dtype']}, which is not supported. Use bf16, fp16 or fp32 weights."
            )
        first, last = entry["data_offsets"]
        entries[name] = (path, _DTYPES[entry["dtype"]], entry["shape"], 8 + size + first, last - first)
    return entries
