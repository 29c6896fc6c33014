"""Rows of a benchmark's data: Parquet, VLMEvalKit's TSV, a saved copy, or a Hugging Face dataset by hub id."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.evaluation.rows import Layout, Row

MOVED = {"lmms-lab-encoder": "lmms-lab", "lmms-eval": "lmms-lab", "lmms-lab-eval": "lmms-lab"}
"""Owners that hold today what another held before: the new id is tried first."""
_BATCH = 16
_LONGEST_REFERENCE = 64
"""A TSV image so short is no image: it is the index of the row that has it."""
_MOST_LISTED = 8
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True, kw_only=True)
class DataPlace:
    """Where the data of a benchmark lies, and what is read of it.

    Attributes:
        name: The benchmark's name, for messages and for `data_root/<name>`.
        hub_id: Dataset on the hub.
        config: Its configuration; None: the only one.
        split: Its split.
        data_root: Local data: a file, a directory, or one that holds the benchmark's `folder`; None: the hub.
        columns: Columns that must be there, by layout.
        optional: Columns that are read where they are there, by layout.
        tsv_name: Name of VLMEvalKit's file, without its ending.
        revision: Revision on the hub; None: the newest.
        apart: Whether local files count only in a folder named like the configuration; else any do where there is none.
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
    apart: bool = False

    @property
    def root(self) -> Path:
        """The directory of local data.

        Raises:
            ValueError: there is no `data_root`.
        """
        if self.data_root is None:
            raise ValueError("no data_root, so no local data")
        return Path(self.data_root).expanduser()

    @property
    def folder(self) -> Path:
        """Where local data lies: a folder of `data_root` called as the benchmark or its dataset is, else `data_root` itself.

        Upper and lower case of the benchmark's name do not matter. A dataset's folder is that of a download: its name,
        `OWNER/NAME`, `OWNER--NAME`, or a snapshot in the hub's cache.

        Raises:
            ValueError: there is no `data_root`.
        """
        if (own := _child(self.root, self.name)) is not None and own.is_dir():
            return own
        for hub_id in _hub_ids(self.hub_id):
            owner, _, name = hub_id.rpartition("/")
            for folder in (name, hub_id, f"{owner}--{name}", f"{owner}__{name}"):
                if (self.root / folder).is_dir():
                    return self.root / folder
            snapshots = (self.root / f"datasets--{owner}--{name}" / "snapshots").glob("*")
            if newest := max(snapshots, key=lambda path: path.stat().st_mtime_ns, default=None):
                return newest
        return self.root

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
        fingerprint: Follows the content as far as it is known without reading it all (of Parquet the files' footers, of a
            TSV all columns but the images), and not the place where it lies.
    """

    layout: Layout
    num_rows: int
    source: str
    fingerprint: str
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
    root, folder = place.root, place.folder
    if (file := _tsv_file(place, root, folder)) is not None:
        return _from_tsv(file, place)
    files = [root] if root.suffix == ".parquet" and root.is_file() else _parquet_files(place, folder)
    if files:
        return _from_parquet(files, place)
    if place.apart and (lists := sorted(folder.rglob(f"{place.config}.json"))):
        return _from_json(lists[0], place)
    if saved := [path.parent for path in _own(sorted(folder.rglob("dataset_info.json")), place)]:
        return _from_saved(_chosen(saved, place), place)
    expected = f"{folder}" if folder != root else f"{root / place.name} (there is no such folder)"
    raise ConfigError(
        f"data_root={place.data_root}: no Parquet files for {place.name} in {expected}, nor a TSV file"
        f"{f' {place.tsv_name}.tsv' if place.tsv_name else ''}. {folder} {_contents(folder)}. "
        f"Download {place.hub_id} ({_part(place)}) there."
    )


def open_configs(place: DataPlace, configs: Sequence[str], *, tsv_names: Mapping[str, str]) -> Rows:
    """The rows of several configurations, one after the other; a row knows its own, and is numbered within it.

    Args:
        place: Where the data lies; of its configuration nothing is read.
        configs: The configurations, in order.
        tsv_names: VLMEvalKit's file of each, where it has several; else one file holds them all.

    Raises:
        ConfigError: the data of a configuration is not there; all that are missing are named.
        DataError: as `open_rows`.
    """
    if not tsv_names and place.data_root is not None:
        whole = _tsv_file(place, place.root, place.folder)
        if whole is not None:
            return _from_tsv(whole, place)
    parts: dict[str, Rows] = {}
    missing: dict[str, ConfigError] = {}
    for config in configs:
        named = tsv_names.get(config, place.tsv_name)
        try:
            parts[config] = open_rows(replace(place, config=config, tsv_name=named, apart=len(configs) > 1))
        except ConfigError as error:
            missing[config] = error
    if missing and len(configs) > 1:
        raise ConfigError(
            f"{place.name}: {len(missing)} of {len(configs)} configurations are not there: {', '.join(missing)}. Set "
            f"benchmark_options.{place.name}.config to those that are, or: {next(iter(missing.values()))}"
        )
    if missing:
        raise next(iter(missing.values()))

    def read() -> Iterator[Row]:
        for config, rows in parts.items():
            for row in rows:
                yield replace(row, config=config)

    first = next(iter(parts.values()))
    told = hashlib.sha256(json.dumps({config: rows.fingerprint for config, rows in parts.items()}).encode()).hexdigest()
    return Rows(first.layout, sum(rows.num_rows for rows in parts.values()), first.source, told, read)


def _part(place: DataPlace) -> str:
    return f"config {place.config}, split {place.split}" if place.config else f"split {place.split}"


def _own(files: Sequence[Path], place: DataPlace) -> list[Path]:
    """The files that are this benchmark's: all in a folder of its name, else none of a folder that may be another's.

    A dataset's folder may serve several benchmarks, which its configurations tell apart.
    """
    folder = place.folder
    if folder.name.casefold() == place.name.casefold():
        return list(files)
    plain = {"data", "default", place.config, place.split}
    mine = [path for path in files if plain.issuperset(path.relative_to(folder).parts[:-1])]
    if folder == place.root or not place.config:
        return mine
    return [path for path in mine if any(part.startswith(place.config) for part in path.relative_to(folder).parts)]


def _hub_ids(hub_id: str) -> list[str]:
    """The id, and the one under which another owner held it before."""
    owner, _, name = hub_id.partition("/")
    return [hub_id, *([f"{MOVED[owner]}/{name}"] if owner in MOVED else [])]


def _child(directory: Path, name: str) -> Path | None:
    """What lies in a directory under a name, or under the same name in other case; None where nothing does."""
    if (directory / name).exists() or not directory.is_dir():
        return directory / name if directory.is_dir() else None
    return next((path for path in sorted(directory.iterdir()) if path.name.casefold() == name.casefold()), None)


def _contents(directory: Path) -> str:
    """What a directory holds, for a message."""
    if not directory.is_dir():
        return "is not there"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(directory.iterdir())]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"holds {', '.join(names[:_MOST_LISTED])}{more}" if names else "is empty"


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet_files(place: DataPlace, folder: Path) -> list[Path]:
    """The files of the config and split.

    Raises:
        ConfigError: there are files, all of other splits.
    """
    files = _own(sorted(folder.rglob("*.parquet")), place)
    if place.config:
        mine = [path for path in files if place.config in path.relative_to(folder).parts]
        files = mine if place.apart else mine or files
    sharded = {path: found["split"] for path in files if (found := _SHARD.fullmatch(path.stem))}
    chosen = [path for path in files if sharded.get(path) == place.split or path.stem == place.split]
    if chosen or not sharded:
        return chosen or files
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

    num_rows, told = 0, hashlib.sha256()
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                place.check(str(path), "hub", file.schema_arrow.names)
                num_rows += int(file.metadata.num_rows)
            told.update(_footer(path))
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

    return Rows("hub", num_rows, str(files[0].parent), told.hexdigest(), read)


def _footer(path: Path) -> bytes:
    """The end of a Parquet file: number of rows, sizes, and least and greatest values of every column chunk.

    Its length stands in four bytes before the last four (Apache Parquet, File Format).
    """
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


# --- JSON -----------------------------------------------------------------------------------------------------------


def _from_json(path: Path, place: DataPlace) -> Rows:
    """A list of objects.

    Raises:
        DataError: it is none.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error}). Download it again.", reason="unreadable") from error
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) for row in cast("list[Any]", found)):
        raise DataError(
            f"{path}: not a list of JSON objects; {place.name} has one. Download it again.", reason="unreadable"
        )
    rows = cast("list[dict[str, Any]]", found)
    place.check(str(path), "hub", sorted(set[str]().union(*rows)))

    def read() -> Iterator[Row]:
        for number, values in enumerate(rows):
            yield Row(values, Origin(str(path), number + 1), "hub", number, path.parent)

    told = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return Rows("hub", len(rows), str(path), told, read)


# --- TSV --------------------------------------------------------------------------------------------------------------


def _tsv_file(place: DataPlace, root: Path, folder: Path) -> Path | None:
    """The TSV file of a benchmark: named outright, under VLMEvalKit's name, or the only one in its own folder.

    Raises:
        ConfigError: there are several, none with that name.
    """
    if root.suffix == ".tsv":
        other = place.apart and place.tsv_name and root.stem != place.tsv_name
        return root if root.is_file() and not other else None
    for directory in (folder, root):
        if place.tsv_name and (file := _child(directory, f"{place.tsv_name}.tsv")) is not None and file.is_file():
            return file
    if folder == root or place.apart:
        return None
    found = sorted(folder.glob("*.tsv"))
    if len(found) > 1:
        raise ConfigError(
            f"data_root={place.data_root}: {folder} holds several TSV files, none called {place.tsv_name}.tsv. "
            f"Name one in benchmark_options.{place.name}.data_root."
        )
    return found[0] if found else None


def _from_tsv(path: Path, place: DataPlace) -> Rows:
    header, num_rows, referred, told = _scan_tsv(path, place)

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
    return Rows("tsv", num_rows, str(path), told, read)


def _scan_tsv(path: Path, place: DataPlace) -> tuple[list[str], int, set[str], str]:
    """Columns, number of rows, the indices of rows whose image others use, and a fingerprint of the texts."""
    header: list[str] = []
    told = hashlib.sha256()
    referred: set[str] = set()
    num_rows = 0
    try:
        for number, values in _tsv_lines(path):
            num_rows = number + 1
            header = header or list(values)
            image = values.get("image") or ""
            if 0 < len(image) <= _LONGEST_REFERENCE:
                referred.add(image)
            told.update(json.dumps([value for name, value in values.items() if name != "image"]).encode())
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a TSV file ({error}). Download it again.", reason="unreadable") from error
    if not header:
        raise DataError(
            f"{path}: a TSV file without rows; {place.name} has some. Download it again.", reason="unreadable"
        )
    return header, num_rows, referred, told.hexdigest()


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
        own = [path for path in mine if place.config in path.parts]
        mine = own if place.apart else own or mine
    if not mine and (place.apart or len(folders) > 1):
        raise ConfigError(
            f"data_root={place.data_root}: none of {', '.join(map(str, folders))} is the {_part(place)}. Name the folder of that one."
        )
    return (mine or list(folders))[0]


def _from_saved(folder: Path, place: DataPlace) -> Rows:
    from datasets import load_from_disk

    return _from_dataset(load_from_disk(str(folder)), str(folder), place)


def _from_hub(place: DataPlace) -> Rows:
    from datasets import load_dataset

    tried = _hub_ids(place.hub_id)
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

    return Rows("hub", len(data), where, str(data._fingerprint), read)  # of its content, as datasets keeps it


def _plain(data: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for values in data:
        yield dict(values)
