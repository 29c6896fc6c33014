"""Rows of a benchmark's data: Parquet, VLMEvalKit's TSV, a saved copy, or a Hugging Face dataset by hub id."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.evaluation.rows import Layout, Row

MOVED = {"lmms-lab-encoder": "lmms-lab", "lmms-eval": "lmms-lab", "lmms-lab-eval": "lmms-lab"}
"""Owners that hold today what another held before: the new id is tried first."""
_BATCH = 16
_LONGEST_REFERENCE = 64
"""A TSV image so short is no image: it is the index of the row that has it."""
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True, kw_only=True)
class DataPlace:
    """Where the data of a benchmark lies, and what is read of it.

    Attributes:
        name: The benchmark's name, for messages and for `data_root/<name>`.
        hub_id: Dataset on the hub.
        config: Its configuration; None: the only one.
        split: Its split.
        data_root: Local data: a file, a directory, or one that holds such a directory called `name`; None: the hub.
        columns: Columns that must be there, by layout.
        optional: Columns that are read where they are there, by layout.
        tsv_name: Name of VLMEvalKit's file, without its ending.
        revision: Revision on the hub; None: the newest.
    """

    name: str
    hub_id: str
    config: str | None
    split: str
    data_root: str | Path | None
    columns: Mapping[Layout, Sequence[str]]
    optional: Mapping[Layout, Sequence[str]] = field(default_factory=dict[Layout, Sequence[str]])
    tsv_name: str = ""
    revision: str | None = None

    def wanted(self, layout: Layout, found: Sequence[str]) -> list[str]:
        """The columns to read of those found.

        Raises:
            KeyError: none; a missing column is told by `check`.
        """
        named = [*self.columns.get(layout, ()), *self.optional.get(layout, ())]
        return [column for column in dict.fromkeys(named) if column in found]

    def check(self, where: str, layout: Layout, found: Sequence[str]) -> None:
        """Compare the columns found with those that must be there.

        Raises:
            DataError: a column is missing.
        """
        if missing := sorted(set(self.columns.get(layout, ())) - set(found)):
            raise DataError(
                f"{where}: lacks the columns {', '.join(missing)}; found {', '.join(found)}. "
                f"Is it the data of another benchmark than {self.name}? Check data_root.",
                reason="columns",
            )


@dataclass(frozen=True)
class Rows:
    """The rows of a place, in the order of the data; iterating reads them anew.

    Attributes:
        layout: Whose columns they have.
        num_rows: How many there are.
        source: What was read, for reports.
    """

    layout: Layout
    num_rows: int
    source: str
    read: Callable[[], Iterator[Row]] = field(repr=False)

    def __iter__(self) -> Iterator[Row]:
        return self.read()


def open_rows(place: DataPlace) -> Rows:
    """Find the data and look at its columns; nothing is decoded.

    Raises:
        ConfigError: no data there.
        DataError: a column is missing, or a file is not what its ending says.
    """
    if place.data_root is None:
        return _from_hub(place)
    root = Path(place.data_root).expanduser()
    folder = root / place.name if (root / place.name).is_dir() else root
    if (file := _tsv_file(place, root, folder)) is not None:
        return _from_tsv(file, place)
    files = [root] if root.suffix == ".parquet" and root.is_file() else _parquet_files(place, folder)
    if files:
        return _from_parquet(files, place)
    if saved := [path.parent for path in sorted(folder.rglob("dataset_info.json"))]:
        return _from_saved(_chosen(saved, place), place)
    raise ConfigError(
        f"data_root={place.data_root}: no Parquet files for {place.name} in {folder}, nor a TSV file"
        f"{f' {place.tsv_name}.tsv' if place.tsv_name else ''}. "
        f"Download {place.hub_id} ({_part(place)}) there."
    )


def _part(place: DataPlace) -> str:
    return f"config {place.config}, split {place.split}" if place.config else f"split {place.split}"


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet_files(place: DataPlace, folder: Path) -> list[Path]:
    """The files of the config and split.

    Raises:
        ConfigError: there are files, all of other splits.
    """
    files = sorted(folder.rglob("*.parquet"))
    if place.config:
        files = [path for path in files if place.config in path.relative_to(folder).parts] or files
    sharded = {path: found["split"] for path in files if (found := _SHARD.fullmatch(path.stem))}
    mine = [path for path in files if sharded.get(path) == place.split or path.stem == place.split]
    if mine or not sharded:
        return mine or files
    loose = [path for path in files if path not in sharded]
    if loose:
        return loose
    raise ConfigError(
        f"data_root={place.data_root}: {folder} holds the splits {', '.join(sorted(set(sharded.values())))} of "
        f"{place.name}, not {place.split}. Download it, or set benchmark_options.{place.name}.split."
    )


def _from_parquet(files: Sequence[Path], place: DataPlace) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_rows = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                place.check(str(path), "hub", file.schema_arrow.names)
                num_rows += int(file.metadata.num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a Parquet file ({error}). Download it again.", reason="unreadable") from error

    def read() -> Iterator[Row]:
        number = 0
        for path in files:
            with pq.ParquetFile(path) as file:
                columns = place.wanted("hub", file.schema_arrow.names)
                row = 0
                for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                    for values in batch.to_pylist():
                        row += 1
                        yield Row(values, Origin(str(path), row), "hub", number, path.parent)
                        number += 1

    return Rows("hub", num_rows, str(files[0].parent), read)


# --- TSV --------------------------------------------------------------------------------------------------------------


def _tsv_file(place: DataPlace, root: Path, folder: Path) -> Path | None:
    """The TSV file of a benchmark: named outright, under VLMEvalKit's name, or the only one in its own folder.

    Raises:
        ConfigError: there are several, none with that name.
    """
    if root.suffix == ".tsv":
        return root if root.is_file() else None
    for directory in (folder, root):
        if place.tsv_name and (file := directory / f"{place.tsv_name}.tsv").is_file():
            return file
    if folder == root:
        return None
    found = sorted(folder.glob("*.tsv"))
    if len(found) > 1:
        raise ConfigError(
            f"data_root={place.data_root}: {folder} holds several TSV files, none called {place.tsv_name}.tsv. "
            f"Name one in benchmark_options.{place.name}.data_root."
        )
    return found[0] if found else None


def _from_tsv(path: Path, place: DataPlace) -> Rows:
    header, num_rows, referred = _scan_tsv(path, place)

    def read() -> Iterator[Row]:
        shared = {
            str(values["index"]): values["image"]
            for _, values in (_tsv_lines(path) if referred else ())
            if str(values.get("index")) in referred
        }
        for number, values in _tsv_lines(path):
            image = values.get("image") or ""
            if image and len(image) <= _LONGEST_REFERENCE and image in shared:
                values["image"] = shared[image]
            yield Row(values, Origin(str(path), number + 1), "tsv", number, path.parent)

    place.check(str(path), "tsv", header)
    return Rows("tsv", num_rows, str(path), read)


def _scan_tsv(path: Path, place: DataPlace) -> tuple[list[str], int, set[str]]:
    """Columns, number of rows, and the indices of rows whose image others use."""
    header: list[str] = []
    referred: set[str] = set()
    num_rows = 0
    try:
        for number, values in _tsv_lines(path):
            num_rows = number + 1
            header = header or list(values)
            image = values.get("image") or ""
            if 0 < len(image) <= _LONGEST_REFERENCE:
                referred.add(image)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a TSV file ({error}). Download it again.", reason="unreadable") from error
    if not header:
        raise DataError(
            f"{path}: a TSV file without rows; {place.name} has some. Download it again.", reason="unreadable"
        )
    return header, num_rows, referred


def _tsv_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with path.open(encoding="utf-8", newline="") as file:
        for number, values in enumerate(csv.DictReader(file, delimiter="\t")):
            yield number, {str(name): value or "" for name, value in values.items()}


# --- datasets ---------------------------------------------------------------------------------------------------------


def _chosen(folders: Sequence[Path], place: DataPlace) -> Path:
    """The saved folder of the split, or the only one.

    Raises:
        ConfigError: there are several, none called like the split.
    """
    mine = [path for path in folders if path.name == place.split]
    if place.config:
        mine = [path for path in mine if place.config in path.parts] or mine
    if not mine and len(folders) > 1:
        raise ConfigError(
            f"data_root={place.data_root}: none of {', '.join(map(str, folders))} is the {_part(place)}. Name the folder of that one."
        )
    return (mine or list(folders))[0]


def _from_saved(folder: Path, place: DataPlace) -> Rows:
    from datasets import load_from_disk

    return _from_dataset(load_from_disk(str(folder)), str(folder), place)


def _from_hub(place: DataPlace) -> Rows:
    from datasets import load_dataset

    owner, _, rest = place.hub_id.partition("/")
    tried = [place.hub_id, *([f"{MOVED[owner]}/{rest}"] if owner in MOVED else [])]
    for number, one in enumerate(tried):
        try:
            data: Any = load_dataset(one, place.config, split=place.split, revision=place.revision)
        except (OSError, ValueError) as error:  # datasets' own errors derive from these
            if number + 1 == len(tried):
                raise ConfigError(
                    f"benchmarks: {place.name} needs {' or '.join(tried)} ({_part(place)}) from the hub, which cannot be "
                    f"had here ({str(error).splitlines()[0]}). Download its Parquet files and set data_root."
                ) from error
        else:
            return _from_dataset(data, one, place)
    raise AssertionError("one of the ids was tried")


def _from_dataset(data: Any, where: str, place: DataPlace) -> Rows:
    from datasets import Image
    from datasets import Sequence as Several

    place.check(where, "hub", data.column_names)
    kept = data.select_columns(place.wanted("hub", data.column_names))
    for column, feature in kept.features.items():
        if isinstance(feature, Image):
            kept = kept.cast_column(column, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            kept = kept.cast_column(column, Several(Image(decode=False)))

    def read() -> Iterator[Row]:
        for number, values in enumerate(_plain(kept)):
            yield Row(values, Origin(where, number + 1), "hub", number)

    return Rows("hub", len(data), where, read)


def _plain(data: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for values in data:
        yield dict(values)
