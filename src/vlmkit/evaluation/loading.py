"""Rows of a benchmark's data: Parquet files in a directory, or a Hugging Face dataset by hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.evaluation.benchmark import BadCase

Row = dict[str, Any]
MOVED = {"lmms-lab-encoder": "lmms-lab"}
"""Owners that hold today what another held before: the new id is tried first."""
_BATCH = 64


def load_rows(
    *, name: str, hub_id: str, config: str | None, split: str, columns: Sequence[str], data_root: str | Path | None
) -> Iterator[tuple[Origin, Row]]:
    """Rows in the order of the data, images as encoded bytes.

    Args:
        name: The benchmark's name, for messages and for `data_root/<name>`.
        hub_id: Dataset on the hub.
        config: Its configuration; None: the only one.
        split: Its split; local files of another split are told by their names.
        columns: What the benchmark reads.
        data_root: Directory of Parquet files, or one that holds such a directory called `name`; None: the hub.

    Raises:
        ConfigError: no data there.
        DataError: a column is missing.
    """
    if data_root is None:
        yield from _from_hub(name, hub_id, config, split, columns)
        return
    root = Path(data_root).expanduser()
    place = root / name if (root / name).is_dir() else root
    files = sorted(place.rglob("*.parquet"))
    files = [path for path in files if path.name.startswith(split)] or files
    if not files:
        raise ConfigError(
            f"data_root={data_root}: no Parquet files for {name} in {place}. Download {hub_id} (split {split}) there."
        )
    for path in files:
        yield from _from_parquet(path, columns)


def image_bytes(value: Any, *, origin: Origin) -> bytes:
    """The encoded image of an image column.

    Raises:
        DataError: there is none.
    """
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise DataError(
            f"its image holds {type(found).__name__}, wanted encoded bytes.", reason="missing_media", origin=origin
        )
    return found


def bad(identifier: str, error: DataError) -> BadCase:
    """A row that makes no question."""
    return BadCase(id=identifier, reason=str(error))


def _from_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[Origin, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({error}).", reason="unreadable") from error
    _check_columns(str(path), columns, file.schema_arrow.names)
    row = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
        for values in batch.to_pylist():
            row += 1
            yield Origin(str(path), row), values


def _from_hub(
    name: str, hub_id: str, config: str | None, split: str, columns: Sequence[str]
) -> Iterator[tuple[Origin, Row]]:
    from datasets import Image, load_dataset

    owner, _, rest = hub_id.partition("/")
    tried = [hub_id, *([f"{MOVED[owner]}/{rest}"] if owner in MOVED else [])]
    data: Any = None
    for number, one in enumerate(tried):
        try:
            data = load_dataset(one, config, split=split)
            break
        except (OSError, ValueError) as error:  # datasets' own errors derive from these
            if number + 1 == len(tried):
                raise ConfigError(
                    f"benchmarks: {name} needs {' or '.join(tried)} from the hub, which cannot be had here "
                    f"({str(error).splitlines()[0]}). Download its Parquet files and set data_root."
                ) from error
    _check_columns(hub_id, columns, data.column_names)
    for column, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    for row, values in enumerate(data, start=1):
        yield Origin(hub_id, row), values


def _check_columns(where: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise DataError(
            f"{where}: lacks the columns {', '.join(missing)}; found {', '.join(found)}. Is it the data of another benchmark?",
            reason="columns",
        )
