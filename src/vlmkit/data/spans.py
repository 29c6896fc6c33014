"""Where each row of a manifest begins and ends, in bytes: found in one pass, without parsing and without loading it.

A JSON Lines file has a row a line (blank lines are no rows). A JSON array has a row an element, whatever its layout;
an array that holds one object a line, as most tools write it, is scanned by its line breaks, ten times faster. Which
of the two a file is, its first character says, not its name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from vlmkit.errors import DataError, Origin

Layout = Literal["lines", "array_lines", "array"]
"""`lines`: JSONL. `array_lines`: a JSON array with one object a line. `array`: any other JSON array."""
Spans = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Offsets of first bytes, and lengths in bytes, of consecutive rows."""

_CHUNK_BYTES = 1 << 22
_STRUCTURE_BYTES = 1 << 20
_NEWLINE, _CARRIAGE_RETURN, _SPACE = 10, 13, 32
_COMMA, _OPEN, _CLOSE, _QUOTE, _BACKSLASH = 44, 123, 125, 34, 92
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_WHITESPACE = b" \t\r\n"
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,"]+', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The part of a file that holds rows, and how they lie in it.

    Attributes:
        layout: See `Layout`.
        start, end: Bytes [start, end): all of a JSONL file, what is between the brackets of an array.
    """

    layout: Layout
    start: int
    end: int


def find_extent(path: Path) -> Extent:
    """Look at both ends of a manifest and say how its rows lie in it.

    Raises:
        DataError: the file is empty, no UTF-8 text, or an array that is not closed.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(1 << 16)
        if head.startswith(_UTF_16) or b"\0" in head[:4]:
            raise DataError(
                "the manifest is UTF-16 text; rows are UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
                reason="encoding",
                origin=Origin(str(path), 1),
            )
        start = len(_BOM) if head.startswith(_BOM) else 0
        start += _leading_space(head[start:])
        if start == size:
            raise DataError(
                "the manifest is empty. Check data.sources.", reason="empty_file", origin=Origin(str(path), 1)
            )
        if head[start : start + 1] != b"[" or _begins_with_a_whole_line(head[start:]):
            return Extent(layout="lines", start=start, end=size)
        end = _closing_bracket(file, size, path)
    inside = head[start + 1 :]
    start += 1 + _leading_space(inside)
    first = head[start : head.find(b"\n", start) if b"\n" in head[start:] else len(head)].rstrip()
    by_line = first.startswith(b"{") and first.endswith((b"},", b"}")) and b"\n" in head[start:]
    return Extent(layout="array_lines" if by_line else "array", start=min(start, end), end=end)


def _begins_with_a_whole_line(text: bytes) -> bool:
    """Whether the first line is an array of its own and more follows: a row that is a list, not a manifest that is."""
    line, _, rest = text.partition(b"\n")
    return line.rstrip().endswith(b"]") and bool(rest.strip()) and _is_json(line)


def _leading_space(text: bytes) -> int:
    return len(text) - len(text.lstrip(_WHITESPACE))


def _closing_bracket(file: object, size: int, path: Path) -> int:
    """Byte offset of the `]` that ends the file."""
    tail_start = max(0, size - (1 << 16))
    tail = os.pread(file.fileno(), size - tail_start, tail_start).rstrip(_WHITESPACE)  # type: ignore[attr-defined]
    if not tail.endswith(b"]"):
        raise DataError(
            "the manifest begins as a JSON array ('[') but does not end with ']': it is cut short or something follows "
            "the array. Write it again.",
            reason="bad_json",
            origin=Origin(str(path), 1),
        )
    return tail_start + len(tail) - 1


def scan_rows(path: Path, extent: Extent, *, seen: Callable[[int], None] | None = None) -> Iterator[Spans]:
    """Yield the spans of all rows in the order of the file, some thousands at a time, in bounded memory.

    Args:
        path: The manifest.
        extent: What `find_extent` said of it; an `array_lines` file may be scanned as an `array` too.
        seen: Told how many bytes are done.

    Raises:
        DataError: an array whose brackets, quotes or commas do not agree; the message says after which row.
        LayoutError: the file is not laid out as `array_lines`; scan it as an `array`.
    """
    with open(path, "rb", buffering=0) as file:
        scan = _scan_structure if extent.layout == "array" else _scan_lines
        yield from scan(file.fileno(), extent, path, seen or (lambda _: None))


class LayoutError(Exception):
    """An array does not hold one object a line after all."""


def _scan_lines(fd: int, extent: Extent, path: Path, seen: Callable[[int], None]) -> Iterator[Spans]:
    strip = _strip_separators if extent.layout == "array_lines" else _strip_line_ends
    for base, chunk in _whole_lines(fd, extent):
        ends = np.flatnonzero(chunk == _NEWLINE)
        if base + len(chunk) == extent.end and (not len(ends) or ends[-1] != len(chunk) - 1):
            ends = np.append(ends, len(chunk))  # the last line may lack its line break
        starts = np.empty_like(ends)
        starts[:1], starts[1:] = 0, ends[:-1] + 1
        starts, ends = strip(chunk, starts, ends, base + len(chunk) == extent.end)
        seen(base + len(chunk) - extent.start)
        if len(starts):
            yield starts + base, ends - starts


def _whole_lines(fd: int, extent: Extent) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Stretches of the file that end with a line break (or with the extent), and their offsets."""
    position, size = extent.start, _CHUNK_BYTES
    buffer = np.empty(size, dtype=np.uint8)
    while position < extent.end:
        wanted = min(size, extent.end - position)
        chunk = buffer[: _read_into(fd, buffer[:wanted], position)]
        if not len(chunk):
            return
        end = len(chunk)
        if position + end < extent.end:
            end = chunk.tobytes().rfind(b"\n") + 1
            if not end:  # one line fills the buffer: try again with a larger one
                size *= 2
                buffer = np.empty(size, dtype=np.uint8)
                continue
        yield position, chunk[:end]
        position += end


def _read_into(fd: int, buffer: NDArray[np.uint8], position: int) -> int:
    return os.preadv(fd, [memoryview(cast(bytearray, buffer))], position)


def _strip_line_ends(
    chunk: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], last: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lines without blank ones. White space beside a row is JSON too and stays."""
    del last
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    suspects = np.flatnonzero(chunk[starts] <= _SPACE)
    if len(suspects):
        blank = [not bytes(chunk[starts[row] : ends[row]]).strip(_WHITESPACE) for row in suspects]
        kept = np.ones(len(starts), dtype=np.bool_)
        kept[suspects[np.asarray(blank, dtype=np.bool_)]] = False
        starts, ends = starts[kept], ends[kept]
    return starts, ends


def _strip_separators(
    chunk: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], last: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Objects without the comma behind them; refuses lines that are no whole object by the look of their ends."""
    starts, ends = _strip_line_ends(chunk, starts, ends, last)
    if not len(starts):
        return starts, ends
    for byte in (_SPACE, 9):
        while np.any(indented := chunk[starts] == byte):
            starts = starts + indented
    ends = ends - (chunk[ends - 1] == _CARRIAGE_RETURN)
    commas = chunk[ends - 1] == _COMMA
    ends = ends - commas
    separated = commas.all() if not last else commas[:-1].all() and not commas[-1]
    if not separated or np.any(chunk[starts] != _OPEN) or np.any(chunk[ends - 1] != _CLOSE):
        raise LayoutError
    return starts, ends


@dataclass
class _State:
    """Where a structural scan stands between two chunks."""

    depth: int = 0
    in_string: bool = False
    row_start: int = -1
    gap_start: int = 0
    num_rows: int = 0
    comma_due: bool = False


def _scan_structure(fd: int, extent: Extent, path: Path, seen: Callable[[int], None]) -> Iterator[Spans]:
    """Spans of an array of any layout: brackets outside strings, by whole chunks."""
    state = _State(gap_start=extent.start)
    buffer = np.empty(min(_CHUNK_BYTES, _STRUCTURE_BYTES), dtype=np.uint8)
    marks = _Marks(len(buffer))
    position, carried_escape = extent.start, False
    while position < extent.end:
        chunk = buffer[: _read_into(fd, buffer[: min(len(buffer), extent.end - position)], position)]
        if not len(chunk):
            break
        places, values, carried_escape = _structural_bytes(chunk, marks, carried_escape)
        opened, closed = _row_edges(places, values, state, position, path)
        yield from _rows_and_gaps(fd, opened, closed, state, path)
        position += len(chunk)
        seen(position - extent.start)
    if state.depth or state.in_string:
        raise _broken(path, state.num_rows, "it ends inside the row: a bracket or a quote is not closed")
    yield from _gap_rows(fd, state, extent.end, path, last=True)


class _Marks:
    """Marks bytes in a chunk, in memory that is taken once: fresh pages would cost more than the marking."""

    def __init__(self, size: int) -> None:
        self._folded = np.empty(size, dtype=np.uint8)
        self._found = np.empty(size, dtype=np.bool_)
        self._more = np.empty(size, dtype=np.bool_)

    def structure(self, chunk: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Brackets and quotes; valid until the next call."""
        folded, found, more = self._folded[: len(chunk)], self._found[: len(chunk)], self._more[: len(chunk)]
        np.bitwise_or(chunk, 0x20, out=folded)  # '[' becomes '{', ']' becomes '}', and nothing else does
        np.equal(folded, _OPEN, out=found)
        for place, byte in ((folded, _CLOSE), (chunk, _QUOTE)):
            np.equal(place, byte, out=more)
            np.logical_or(found, more, out=found)
        return found

    def backslashes(self, chunk: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Places of backslashes."""
        return np.flatnonzero(np.equal(chunk, _BACKSLASH, out=self._more[: len(chunk)]))


def _structural_bytes(
    chunk: NDArray[np.uint8], marks: _Marks, escape_carried: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint8], bool]:
    """Places and values of brackets and unescaped quotes; whether the chunk ends with an open escape."""
    marked = marks.structure(chunk)
    backslashes = marks.backslashes(chunk)
    escape_open = False
    if escape_carried:
        marked[0] = False
    if len(backslashes):
        if escape_carried and backslashes[0] == 0:
            backslashes = backslashes[1:]  # this one is itself escaped
        breaks = np.flatnonzero(np.diff(backslashes) != 1)
        run_starts = backslashes[np.concatenate(([0], breaks + 1))] if len(backslashes) else backslashes
        run_ends = backslashes[np.concatenate((breaks, [len(backslashes) - 1]))] if len(backslashes) else backslashes
        escaped = (run_ends + 1)[(run_ends - run_starts) % 2 == 0]  # an odd number escapes what follows
        if len(escaped) and escaped[-1] == len(chunk):
            escape_open, escaped = True, escaped[:-1]
        marked[escaped] = False
    places = np.flatnonzero(marked)
    return places, chunk[places], escape_open


def _row_edges(
    places: NDArray[np.int64], values: NDArray[np.uint8], state: _State, base: int, path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of brackets that open, and of those that close, an element of the array."""
    quotes = values == _QUOTE
    within = np.logical_xor.accumulate(quotes) ^ state.in_string if len(quotes) else quotes
    if len(within):
        state.in_string = bool(within[-1])
    outside = ~(quotes | within)
    places, values = places[outside], values[outside]
    opens = (values & 0xDF) == ord("[")  # '[' and '{' differ in one bit, as do ']' and '}'
    depths = np.cumsum(np.where(opens, 1, -1).astype(np.int8), dtype=np.int64) + state.depth
    if len(depths):
        if depths.min() < 0:
            raise _broken(path, state.num_rows, "a bracket closes what was never opened")
        state.depth = int(depths[-1])
    return places[opens & (depths == 1)] + base, places[~opens & (depths == 0)] + base


def _rows_and_gaps(
    fd: int, opened: NDArray[np.int64], closed: NDArray[np.int64], state: _State, path: Path
) -> Iterator[Spans]:
    """Spans of the elements that are closed by now; what lies between them must be one comma each."""
    if state.row_start >= 0:
        opened = np.concatenate(([state.row_start], opened))
    state.row_start = int(opened[-1]) if len(opened) > len(closed) else -1
    starts, ends = opened[: len(closed)], closed + 1
    if not len(starts):
        return
    gap_starts = np.concatenate(([state.gap_start], ends[:-1]))
    plain = _plain_gaps(fd, gap_starts, starts, state)
    done = 0
    for row in np.flatnonzero(~plain):
        if row > done:
            yield starts[done:row], ends[done:row] - starts[done:row]
            state.num_rows += int(row) - done
        state.gap_start, state.comma_due = int(gap_starts[row]), state.comma_due or bool(row > 0)
        yield from _gap_rows(fd, state, int(starts[row]), path, last=False)
        done = int(row)
    yield starts[done:], ends[done:] - starts[done:]
    state.num_rows += len(starts) - done
    state.gap_start, state.comma_due = int(ends[-1]), True


def _plain_gaps(
    fd: int, gap_starts: NDArray[np.int64], gap_ends: NDArray[np.int64], state: _State
) -> NDArray[np.bool_]:
    """Which gaps are white space with exactly one comma in it."""
    lengths = gap_ends - gap_starts
    plain = (lengths > 0) & (lengths <= 64)
    if not state.comma_due:
        plain[0] = False
    first, size = int(gap_starts[0]), int(gap_ends[-1] - gap_starts[0])
    text = np.frombuffer(os.pread(fd, size, first), dtype=np.uint8)
    commas = np.zeros(len(lengths), dtype=np.int64)
    for step in range(int(lengths[plain].max(initial=0))):
        inside = plain & (step < lengths)
        bytes_there = text[(gap_starts - first + step)[inside]]
        is_comma = bytes_there == _COMMA
        commas[inside] += is_comma
        rows = np.flatnonzero(inside)
        plain[rows[~(is_comma | np.isin(bytes_there, list(_WHITESPACE)))]] = False
    return plain & (commas == 1)


def _gap_rows(fd: int, state: _State, end: int, path: Path, *, last: bool) -> Iterator[Spans]:
    """Elements in a gap that are no objects and no lists (numbers, strings, null): rows too, if wrong ones."""
    text = os.pread(fd, end - state.gap_start, state.gap_start)
    position = 0
    found: list[tuple[int, int]] = []
    expect_comma = state.comma_due
    while rest := text[position:].lstrip(_WHITESPACE):
        position = len(text) - len(rest)
        if expect_comma:
            if not rest.startswith(b","):
                raise _broken(path, state.num_rows + len(found), "a comma is missing after the row")
            position, expect_comma = position + 1, False
            continue
        match = _SCALAR.match(rest)
        if match is None or not _is_json(match[0]):
            raise _broken(path, state.num_rows + len(found), f"{rest[:20].decode(errors='replace')!r} follows the row")
        found.append((state.gap_start + position, len(match[0])))
        position, expect_comma = position + len(match[0]), True
    if not last and expect_comma:
        raise _broken(path, state.num_rows + len(found), "a comma is missing after the row")
    if last and not expect_comma and state.num_rows + len(found):
        raise _broken(path, state.num_rows + len(found), "a comma follows the last row")
    state.comma_due = expect_comma
    if found:
        state.num_rows += len(found)
        offsets, lengths = np.asarray(found, dtype=np.int64).T
        yield offsets, lengths


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _broken(path: Path, num_rows: int, what: str) -> DataError:
    return DataError(
        f"the manifest is no valid JSON array: {what}. Mend the file (or write it as JSON Lines, where one bad row "
        "leaves the others whole).",
        reason="bad_json",
        origin=Origin(str(path), max(num_rows, 1)),
    )
