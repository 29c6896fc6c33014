"""Reading, rewriting, proving and writing a whole file: every row read is written or refused with its reason."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson

from vlmkit.conversation import ImagePart
from vlmkit.data.convert.formats import FORMATS, ROW_FORMATS, Fields, Format, coco_rows, detect, vqa2_rows
from vlmkit.data.convert.reading import read_rows, read_whole
from vlmkit.data.manifest import parse_row
from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.processing.absence import check_file
from vlmkit.processing.media import read_medium
from vlmkit.storage import written_aside

SCHEMA = "vlmkit.convert/1"
_SUFFIXES = {b"\x89PN": ".png", b"\xff\xd8\xff": ".jpg", b"GIF": ".gif", b"RIF": ".webp", b"BM": ".bmp"}
_FIRST_OF_A_REASON = 3


@dataclass
class Converted:
    """What became of the rows of a file: read = written + refused.

    Attributes:
        format: The shape that was read.
        read, written: Rows.
        refused: Rows by reason.
        first: The first messages of each reason.
        media: Images that stood in the rows themselves, written to files.
    """

    format: str = ""
    read: int = 0
    written: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    first: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    media: int = 0

    def refuse(self, error: DataError) -> None:
        """Count a row that is not written, and keep its message if it is among the first of its reason."""
        self.refused[error.reason] += 1
        shown = self.first.setdefault(error.reason, [])
        if len(shown) < _FIRST_OF_A_REASON:
            shown.append(str(error))

    def to_json(self) -> dict[str, Any]:
        """The report as `vlmkit-convert` writes it."""
        return {
            "schema": SCHEMA,
            "format": self.format,
            "read": self.read,
            "written": self.written,
            "refused": dict(self.refused.most_common()),
            "first": self.first,
            "media_written": self.media,
        }

    def to_text(self) -> str:
        """The report for a terminal."""
        total = self.refused.total()
        lines = [f"{self.read:,} rows read as {self.format}, {self.written:,} written, {total:,} refused"]
        for reason, count in self.refused.most_common():
            lines.append(f"  {reason}: {count:,}")
            lines += [f"    {message}" for message in self.first[reason]]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How annotations become a LLaVA manifest.

    Attributes:
        format: One of `FORMATS`, or `auto`: told from the first row.
        fields: Names of fields that are not among the guesses; see `Fields`.
        image: Template of an image's path; see `Fields`.
        question: What is asked about a caption.
        annotations: VQA v2's file of answers.
        root: Directory of the media. If given, every medium named must be there.
        media_dir: Where images that stand in the rows themselves (Parquet) are written; None refuses such rows.
        allow_absolute_paths: Whether rows may name media by absolute paths.
        on_bad_row: `error` writes nothing if a row is refused; `skip` writes the others.
        limit: Only the first so many rows.
        cache_dir: Where compressed files are unpacked.
    """

    format: Format | Literal["auto"]
    fields: dict[str, str | None]
    image: str | None
    question: str
    annotations: str | None
    root: str | None
    media_dir: str | None
    allow_absolute_paths: bool
    on_bad_row: Literal["error", "skip"]
    limit: int | None
    cache_dir: str

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            raise ValueError(f"format={self.format}: choose one of auto, {', '.join(FORMATS)}")
        if self.on_bad_row not in ("error", "skip"):
            raise ValueError(f"on_bad_row={self.on_bad_row}: choose error or skip")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null")
        if self.root and not Path(self.root).expanduser().is_dir():
            raise ValueError(f"root={self.root}: there is no such directory; check the path")

    def run(self, source: str, out: str, *, progress: Callable[[int], object] = lambda _: None) -> Converted:
        """Convert a file. `out` is replaced only when all is written; `.json` gives an array, else a row a line.

        Raises:
            ConfigError: the source is not there, is the output, or is of no known format.
            DataError: the source cannot be read to its end.
        """
        path, target = Path(source).expanduser(), Path(out).expanduser()
        if path.is_dir():
            raise ConfigError(f"input={source}: this is a directory. Name the file of annotations in it.")
        if not path.is_file():
            raise ConfigError(f"input={source}: no such file (seen from {os.getcwd()}). Check the path.")
        if target.is_dir():
            raise ConfigError(f"out={out}: this is a directory. Name a file, out={out.rstrip('/')}/train.jsonl.")
        if target.exists() and target.samefile(path):
            raise ConfigError(f"out={out}: this is the input itself. Name another file.")
        done = Converted()
        rows = self._rows(path, done)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as aside:
            with open(aside, "wb") as file:
                self._write(rows, file, path, done, as_array=target.suffix == ".json", progress=progress)
            if done.refused and self.on_bad_row == "error":
                raise Refused(done)
        return done

    def _rows(self, path: Path, done: Converted) -> Iterator[tuple[int, object]]:
        cache_dir = Path(self.cache_dir).expanduser()
        cache_dir.mkdir(parents=True, exist_ok=True)
        whole = read_whole(path, cache_dir=cache_dir) if self.format in ("auto", "coco", "vqa2") else None
        if whole is not None:
            done.format = "vqa2" if isinstance(whole.get("questions"), list) else "coco"
            if self.format not in ("auto", done.format):
                raise ConfigError(
                    f"format={self.format}: {path} looks like {done.format}. Choose that, or leave format= out."
                )
            if done.format == "coco":
                return coco_rows(whole, self._fields("coco"))
            return vqa2_rows(whole, self._answers(cache_dir))
        if self.format in ("coco", "vqa2"):
            raise ConfigError(
                f"format={self.format}: {path} is not one object with a list of "
                f"{'questions' if self.format == 'vqa2' else 'images and annotations'}. Choose another format=."
            )
        rows = read_rows(path, cache_dir=cache_dir)
        if self.format != "auto":
            done.format = self.format
            return rows
        seen: list[tuple[int, object]] = []
        for number, row in rows:
            seen.append((number, row))
            if not isinstance(row, DataError):
                break
        readable = [row for _, row in seen if not isinstance(row, DataError)]
        if not readable:
            first = f" The first: {seen[0][1]}" if seen else ""
            raise ConfigError(f"format=auto: none of the {len(seen)} rows of {path} can be read. Mend the file.{first}")
        done.format = self._named_format() or detect(readable[0])
        return chain(seen, rows)

    def _named_format(self) -> Format | None:
        """A question and an answer given by name need no guess."""
        return "qa" if self.fields.get("question") and self.fields.get("answer") else None

    def _answers(self, cache_dir: Path) -> dict[str, Any]:
        if not self.annotations:
            raise ConfigError(
                "annotations: VQA v2 keeps its answers in a file of their own. Name it: annotations=FILE."
            )
        path = Path(self.annotations).expanduser()
        if not path.is_file():
            raise ConfigError(f"annotations={self.annotations}: no such file. Check the path.")
        whole = read_whole(path, cache_dir=cache_dir)
        if whole is None or not isinstance(whole.get("annotations"), list):
            raise ConfigError(
                f"annotations={self.annotations}: not one object with a list of annotations. Name VQA v2's file of answers."
            )
        return whole

    def _fields(self, format: str) -> Fields:
        names = {name: told for name, told in self.fields.items() if told}
        image = self.image
        if format == "vqa2" and image is None:
            image = "COCO_{data_subtype}_{image_id:012d}.jpg"
        return Fields(names=names, image=image, question=self.question)

    def _write(
        self,
        rows: Iterator[tuple[int, object]],
        file: BinaryIO,
        path: Path,
        done: Converted,
        *,
        as_array: bool,
        progress: Callable[[int], object],
    ) -> None:
        fields, rewrite = self._fields(done.format), ROW_FORMATS[done.format]
        file.write(b"[" if as_array else b"")
        for number, found in islice(rows, self.limit):
            done.read += 1
            progress(done.read)
            origin = Origin(str(path), number)
            try:
                if isinstance(found, DataError):
                    raise found
                if not isinstance(found, dict):
                    raise DataError(
                        f"the row is a {type(found).__name__}, not an object. Mend or drop it.", reason="not_an_object"
                    )
                row = self._proved(rewrite(cast("dict[str, Any]", found), fields), origin, done)
            except DataError as error:
                done.refuse(error.at(origin))
                continue
            if as_array:
                file.write(b",\n" if done.written else b"\n")
            file.write(orjson.dumps(row) + (b"" if as_array else b"\n"))
            done.written += 1
        file.write(b"\n]\n" if as_array else b"")

    def _proved(self, row: dict[str, Any], origin: Origin, done: Converted) -> dict[str, Any]:
        """The row, once it is one that training reads: parsed by the very function, its media looked for."""
        row = self._with_files(row, done)
        root = Path(self.root).expanduser() if self.root else Path()
        conversation = parse_row(row, origin=origin, root=root, allow_absolute_paths=self.allow_absolute_paths)
        if self.root:
            for medium in conversation.media:
                kind = "image" if isinstance(medium, ImagePart) or isinstance(medium.source, tuple) else "video"
                for place in medium.source if isinstance(medium.source, tuple) else (medium.source,):
                    if isinstance(place, Path):
                        read_medium(medium, partial(check_file, place, kind, root="root"))
        return row

    def _with_files(self, row: dict[str, Any], done: Converted) -> dict[str, Any]:
        """Images that the row holds itself (Hugging Face's `bytes` and `path`) become files."""
        listed = row.get("image")
        if listed is None:
            return row
        entries = cast(list[object], listed) if isinstance(listed, list) else [listed]
        files = [self._file_of(entry, done) if isinstance(entry, dict) else entry for entry in entries]
        return {**row, "image": files if isinstance(listed, list) else files[0]}

    def _file_of(self, entry: dict[str, object], done: Converted) -> str:
        content = entry.get("bytes")
        if not isinstance(content, bytes):
            if isinstance(entry.get("path"), str):
                return cast(str, entry["path"])
            raise DataError(
                "an image is an object with neither 'bytes' nor 'path'. Give one of them, or drop the row.",
                reason="bad_media",
            )
        if not self.media_dir:
            raise DataError(
                "the image stands in the row itself. Set media_dir=DIRECTORY, where such images are written.",
                reason="embedded_image",
            )
        suffix = next((suffix for magic, suffix in _SUFFIXES.items() if content.startswith(magic)), None)
        if suffix is None:
            raise DataError(
                "the image in the row is of no known kind (PNG, JPEG, GIF, WebP, BMP). Convert it to one of these.",
                reason="bad_media",
            )
        name = hashlib.sha256(content).hexdigest()[:24] + suffix
        place = Path(self.media_dir).expanduser() / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(place) as aside:
                aside.write_bytes(content)
            done.media += 1
        base = Path(self.root).expanduser() if self.root else Path(self.media_dir).expanduser()
        return os.path.relpath(place, base)


class Refused(ConfigError):
    """Rows were refused and `on_bad_row=error`: nothing was written.

    Attributes:
        done: What was found.
    """

    def __init__(self, done: Converted) -> None:
        super().__init__(
            f"{done.to_text()}\nNothing was written. Mend these rows"
            + (
                f", or set on_bad_row=skip to write the other {done.written:,}."
                if done.written
                else " or the settings."
            )
        )
        self.done = done


__all__ = ["SCHEMA", "Conversion", "Converted", "Refused"]
