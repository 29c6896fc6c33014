"""A row of a benchmark's data, its columns fetched with a check: whatever the format of the file."""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, cast

from vlmkit.conversation import ImagePart
from vlmkit.errors import DataError, Origin
from vlmkit.processing.media import read_medium

Layout = Literal["hub", "tsv"]
"""Whose columns a row has: those of the data set on the hub, or those of VLMEvalKit's TSV files."""
_MISSING = (None, "", "nan")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        values: Value by column, as the file has it.
        origin: File and row.
        layout: Whose columns these are.
        number: Place in the data, counted from 0.
        root: Directory of the file, for media named by paths; None for rows from the hub.
        config: Configuration it is of, where several are read one after the other.
    """

    values: Mapping[str, Any]
    origin: Origin
    layout: Layout
    number: int
    root: Path | None = None
    config: str = ""

    def text(self, column: str) -> str:
        """The text (or number, as text) in a column.

        Raises:
            DataError: there is none.
        """
        value = self.values.get(column)
        if value is None or isinstance(value, list | dict | bytes):
            raise self.wrong(column, "a text")
        return str(value)

    def optional(self, column: str) -> str:
        """The text in a column; "" where the column, or a value in it, is missing (the text `nan` included)."""
        value = self.values.get(column)
        return "" if value in _MISSING else str(value)

    def texts(self, column: str) -> list[str]:
        """The list of texts in a column: a list, or the text of a Python list, or one text.

        Raises:
            DataError: it is something else, or empty.
        """
        value = self.values.get(column)
        if isinstance(value, str):
            value = _literal(value) if value.lstrip().startswith("[") else [value]
        if not isinstance(value, list) or not value:
            raise self.wrong(column, "a list of texts with something in it")
        return [str(element) for element in cast("list[Any]", value)]

    def listed(self, column: str) -> list[str]:
        """As `texts`, but an absent or empty list is one too."""
        value = self.values.get(column)
        if value in (None, "", [], "[]"):
            return []
        return self.texts(column)

    def mapping(self, column: str) -> Mapping[str, Any]:
        """The object in a column; empty where there is none."""
        value = self.values.get(column)
        return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}

    def images(self, column: str = "image") -> list[bytes]:
        """The encoded images in a column: one or a list, as bytes, `{bytes, path}`, base64 or, in a TSV, by path.

        Raises:
            DataError: there is none, or it cannot be had.
        """
        value = self.values.get(column)
        if self.layout == "tsv" and value in _MISSING and self.values.get("image_path"):
            return [self._read(path) for path in _several(str(self.values["image_path"]))]
        if isinstance(value, str):
            value = _several(value)
        found = cast("list[Any]", value) if isinstance(value, list) else [value]
        if not found:
            raise self.wrong(column, "an encoded image")
        return [self._image(one, column) for one in found]

    def image(self, column: str = "image") -> bytes:
        """The one encoded image in a column.

        Raises:
            DataError: there is none, or more than one.
        """
        found = self.images(column)
        if len(found) != 1:
            raise self.wrong(column, "one image")
        return found[0]

    def has(self, column: str) -> bool:
        """Whether there is something in a column."""
        return self.values.get(column) not in (*_MISSING, [])

    def options(self) -> dict[str, str]:
        """Texts of the options by letter, out of the columns A, B, ...; missing ones are left out."""
        return {letter: str(self.values[letter]) for letter in ascii_uppercase if self.has(letter)}

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error of a column that does not hold what is wanted."""
        value = self.values.get(column)
        shown = repr(value) if isinstance(value, str | int | float) else type(value).__name__
        found = "nothing" if value is None else shown[:80]
        return DataError(
            f"column {column!r} holds {found}, wanted {wanted}.",
            reason="missing_media" if "image" in wanted else "bad_row",
            origin=self.origin,
        )

    def _image(self, value: Any, column: str) -> bytes:
        if isinstance(value, dict):
            told = cast("dict[str, Any]", value)
            value = told.get("bytes") or (self._read(str(told["path"])) if told.get("path") and self.root else None)
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise DataError(
                    f"column {column!r} holds no base64 of an image ({error}). Download the data again.",
                    reason="unreadable_media",
                    origin=self.origin,
                ) from error
        if not isinstance(value, bytes) or not value:
            raise DataError(
                f"its image (column {column!r}) holds {type(value).__name__}, wanted encoded bytes.",
                reason="missing_media",
                origin=self.origin,
            )
        return value

    def _read(self, path: str) -> bytes:
        root = (self.root or Path()).resolve()

        def read() -> bytes:
            file = (root / path).resolve()
            if not file.is_relative_to(root) or not file.is_file():
                raise DataError(
                    f"image {path!r} is not there under {root}. Put the images beside the file.",
                    reason="missing_media",
                )
            return file.read_bytes()

        try:
            return read_medium(ImagePart(root / path), read)
        except DataError as error:
            raise error.at(self.origin) from error.__cause__


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Options by letter, in the order given."""
    return dict(zip(ascii_uppercase, texts, strict=False))


def _several(value: str) -> list[str]:
    """The elements of a list written as text, else the text itself."""
    return [str(one) for one in _literal(value) or []] if value.lstrip().startswith("[") else [value]


def _literal(text: str) -> list[Any] | None:
    try:
        value: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return cast("list[Any]", value) if isinstance(value, list) else None
