r"""A row of a manifest in the LLaVA format becomes a Conversation, checked; whatever is wrong is said by name.

A row is an object with `conversations` (a list of `{"from": ..., "value": ...}`) and, where something is to be seen,
`image`, `images`, `video` or `videos`: a path or a list of paths. `<image>` and `<video>` in the turns of the user
say where each stands; the first marker means the first path, and so on. Where a row lists videos alone, `<image>` stands
for a video, as LLaVA-NeXT's trainer has it (LLaVA-Video's manifests are written so). `system` of a row is its system turn.

Text is kept exactly as written: only the marker itself is taken out, so the line break that LLaVA manifests put
beside it (`<image>\n` before a question, or `\n<image>` after it) stays in the text and is what the model reads.
(Qwen's own trainer strips each piece between markers, LLaVA's keeps the line break.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import cast

import orjson

from vlmkit.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn, VideoPart
from vlmkit.data.fields import refuse_unread_media, refuse_unsupported
from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.processing.processor import PIXEL_LIMITS, Processor

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""What may stand in `from`, and who it is."""
_PLACEHOLDER = re.compile("(<image>|<video>)")
_NEAR_PLACEHOLDER = re.compile(r"<\|?\s*(image|video)s?[\s_-]*\d*\s*\|?>", re.IGNORECASE)
"""What was perhaps meant as a placeholder: `<Image>`, `<image_1>`, `<|image|>`."""
_EMBEDDED_PATH = re.compile(r"<img>\s*([^<>]+?)\s*</img>")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_LIST_AS_TEXT = re.compile(r"\[\s*[\"'].*\]", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_SOURCE_KEYS = ("path", "root", "weight", "name", *PIXEL_LIMITS)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One manifest and how it takes part.

    Attributes:
        path: The manifest as the user gave it: a file, or a URL that fsspec knows. Messages call it so.
        root: Directory that media paths in it are relative to.
        weight: How often its rows are seen in an epoch: 0.5 is every other row, 2.5 is each two or three times.
        name: What reports call it.
        limits: Pixel limits of its own, by name (see `PIXEL_LIMITS`); the others are those of all data.
        plain: Local file with the same rows as plain JSON, where `path` is not that itself; set by the index.
    """

    path: Path | str
    root: Path
    weight: float = 1.0
    name: str
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    plain: Path | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.weight == float("inf"):
            raise ValueError(f"data.sources: weight of {self.name!r} must be a positive number, got {self.weight}")

    @property
    def file(self) -> Path:
        """The local file that rows are read from."""
        return self.plain or Path(self.path)


def resolve_sources(sources: Sequence[str | Path | Mapping[str, object]], *, root: str | Path | None) -> list[Source]:
    """Read `data.sources`: a path, or a mapping with `path` and, as wanted, `root`, `weight`, `name`, pixel limits.

    Args:
        sources: As written in the configuration.
        root: `data.root`; None means the directory of each manifest.

    Returns:
        The sources in order; names are the files' stems, numbered where they repeat.

    Raises:
        ConfigError: no source, an unknown key, a value of the wrong kind, or a file that is not there; of several such
            sources all are named.
    """
    if not sources:
        raise ConfigError("data.sources is empty. Name at least one manifest, as in data.sources=[train.json].")
    found: list[Source] = []
    wrong: list[str] = []
    for number, entry in enumerate(sources):
        where = f"data.sources[{number}]"
        try:
            found.append(_resolve_source(entry, where, root, taken={source.name for source in found}))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return found


def _resolve_source(
    entry: str | Path | Mapping[str, object], where: str, root: str | Path | None, taken: set[str]
) -> Source:
    told: Mapping[str, object] = {"path": entry} if isinstance(entry, str | Path) else entry
    if unknown := sorted(set(told) - set(_SOURCE_KEYS)):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}. A source has {', '.join(_SOURCE_KEYS)}.")
    path = _manifest_path(told.get("path"), where)
    weight = told.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{where}: weight must be a number, got {weight!r}.")
    name = _free_name(str(told.get("name") or PurePath(path).stem), taken)
    try:
        return Source(
            path=path,
            root=_root(told.get("root"), root, path, where),
            weight=float(weight),
            name=name,
            limits=_limits(told, where),
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _limits(told: Mapping[str, object], where: str) -> dict[str, int]:
    limits: dict[str, int] = {}
    for name in PIXEL_LIMITS:
        limit = told.get(name)
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{where}.{name}: must be a positive number of pixels, got {limit!r}.")
        limits[name] = limit
    return limits


def _manifest_path(told: object, where: str) -> Path | str:
    if not isinstance(told, str | Path):
        raise ConfigError(f"{where}: 'path' must name a manifest, got {told!r}.")
    if is_remote(told):
        return str(told)
    path = Path(told).expanduser()
    if path.is_dir():
        raise ConfigError(f"{where}: {str(path)!r} is a directory. Name the manifest; data.root= is for its media.")
    if path.suffix in (".csv", ".tsv"):
        made = path.with_suffix(".jsonl")
        raise ConfigError(f"{where}: {path} is a table. Convert it: vlmkit-convert input={path} out={made}")
    if not path.is_file():
        raise ConfigError(f"{where}: no file at {str(path)!r} (seen from {os.getcwd()}). Check the path.")
    return path


def _root(own: object, common: str | Path | None, path: Path | str, where: str) -> Path:
    """Directory of a source's media: its own root, else the common one, else where the manifest lies."""
    chosen = own or common
    if not chosen and isinstance(path, str):
        raise ConfigError(f"{where}: {path} is remote, its media are not. Set data.root to their directory.")
    directory = Path(cast(str, chosen)).expanduser() if chosen else Path(path).parent
    if not directory.is_dir():
        key = f"{where}.root" if own else "data.root"
        raise ConfigError(f"{key}: no directory at {str(directory)!r}. Media paths are relative to it. Check the path.")
    return directory


def is_remote(path: str | Path) -> bool:
    """Whether a manifest is named by a URL (any that fsspec knows) rather than by a path."""
    return "://" in str(path)


def processors_of(sources: Sequence[Source], processor: Processor) -> list[Processor]:
    """What the rows of each source are encoded with: the processor, with the source's own pixel limits.

    Raises:
        ConfigError: limits of a source that do not go with those of all data.
    """
    try:
        return [processor.with_limits(**source.limits) if source.limits else processor for source in sources]
    except ValueError as error:
        raise ConfigError(f"data.sources: {error}.") from error


def _free_name(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{count}" for count in range(2, len(taken) + 3) if f"{name}-{count}" not in taken)


def decode_row(text: bytes, *, origin: Origin, root: Path, allow_absolute_paths: bool = False) -> Conversation:
    """Parse the text of one row, and check it as `parse_row` does.

    Raises:
        DataError: as `parse_row`, or `bad_json`.
    """
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"the row is no valid JSON ({error.msg.split(': line')[0]}, at character {error.pos + 1} of "
            f"{len(error.doc)}). A JSON Lines file holds one whole object a line. Mend or drop the row.",
            reason="bad_json",
            origin=origin,
        ) from None
    return parse_row(raw, origin=origin, root=root, allow_absolute_paths=allow_absolute_paths)


def row_id(text: bytes) -> str | None:
    """What a row calls itself (`id`), as text; None where it does not."""
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    found = cast(dict[str, object], raw).get("id") if isinstance(raw, dict) else None
    return None if found is None else str(found)


def parse_row(raw: object, *, origin: Origin, root: Path, allow_absolute_paths: bool = False) -> Conversation:
    """Check one row and make a Conversation of it. No file is opened.

    A media path may not leave the root by `..`; a symbolic link below the root is the user's own and is followed.

    Args:
        raw: The row as parsed from JSON.
        origin: Its file and row, for messages.
        root: Directory that media paths are relative to.
        allow_absolute_paths: Whether a medium may lie anywhere.

    Raises:
        DataError: with `origin` and a reason: `not_an_object`, `no_conversations`, `bad_turn`, `unknown_role`,
            `empty_turn`, `no_assistant_turn`, `placeholder_place`, `placeholder_count`, `bad_media`,
            `ambiguous_media`, `ambiguous_system`, `unsupported_field`, `url`, `absolute_path`, `path_leaves_root`.
    """
    try:
        if not isinstance(raw, dict):
            raise DataError(
                f"the row is {_kind(raw)}, not an object with 'conversations'. Mend or drop the row.",
                reason="not_an_object",
            )
        row = cast(dict[str, object], raw)
        paths = _Paths(root=root, allow_absolute=allow_absolute_paths)
        refuse_unsupported(row, what="the row")
        refuse_unread_media(row)
        media = {"<image>": _images(row, paths), "<video>": _videos(row, paths)}
        said = _videos_as_images(_said(row), media)
        _check_counts(said, media)
        return Conversation(turns=tuple(_turns(said, media)), origin=origin)
    except DataError as error:
        raise error.at(origin) from None


def _said(row: dict[str, object]) -> list[tuple[Role, list[str]]]:
    """Role and pieces (text and markers in turn) of every turn."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = "has no 'conversations'" if turns is None else f"has {_kind(turns)} as 'conversations'"
        hint = " ('messages' is another format: convert it.)" if turns is None and "messages" in row else ""
        raise DataError(
            f"the row {found}; it must be a list with at least one turn.{hint}",
            reason="no_conversations",
        )
    said = [_said_in(turn, number) for number, turn in enumerate(cast(list[object], turns), start=1)]
    said = _with_system(row, said)
    if all(role != "assistant" for role, _ in said):
        raise DataError(
            "the row has no turn from 'gpt', so nothing in it could be learnt. Add the answer or drop the row.",
            reason="no_assistant_turn",
        )
    return said


def _with_system(row: dict[str, object], said: list[tuple[Role, list[str]]]) -> list[tuple[Role, list[str]]]:
    """The turns, with the row's own `system` before them where they have none."""
    system = row.get("system")
    if system is None or system == "":
        return said
    if not isinstance(system, str) or _PLACEHOLDER.search(system):
        told = "a text with a placeholder" if isinstance(system, str) else _kind(system)
        raise DataError(f"'system' of the row is {told}; it must be plain text.", reason="bad_turn")
    own = ["".join(pieces) for role, pieces in said if role == "system"]
    if own and own != [system]:
        raise DataError(
            "the row has 'system' and a turn from 'system' that says something else. Keep one of the two.",
            reason="ambiguous_system",
        )
    return said if own else [("system", [system]), *said]


def _videos_as_images(
    said: list[tuple[Role, list[str]]], media: Mapping[str, Sequence[Part]]
) -> list[tuple[Role, list[str]]]:
    """The turns, `<image>` read as `<video>` where the row lists videos alone and no `<video>` stands in it."""
    pieces = [piece for _, turn in said for piece in turn]
    if media["<image>"] or "<video>" in pieces or pieces.count("<image>") != len(media["<video>"]):
        return said
    return [(role, ["<video>" if piece == "<image>" else piece for piece in turn]) for role, turn in said]


def _said_in(turn: object, number: int) -> tuple[Role, list[str]]:
    if not isinstance(turn, dict):
        raise DataError(
            f"turn {number} is {_kind(turn)}, not an object with 'from' and 'value'. Mend or drop the row.",
            reason="bad_turn",
        )
    told = cast(dict[str, object], turn)
    refuse_unsupported(told, what=f"turn {number}")
    speaker, value = told.get("from"), told.get("value")
    for key, found in (("from", speaker), ("value", value)):
        if not isinstance(found, str):
            what = f"has no {key!r}" if key not in told else f"has {_kind(found)} as {key!r}"
            raise DataError(f"turn {number} {what}; it must be a string.", reason="bad_turn")
    speaker, value = cast(str, speaker), cast(str, value)
    if speaker not in ROLES:
        raise DataError(
            f"turn {number} is from {speaker!r}, an unknown role. Known roles: {', '.join(ROLES)}.",
            reason="unknown_role",
        )
    if not value.strip():
        raise DataError(f"turn {number} is empty. Fill it in or drop the row.", reason="empty_turn")
    if ROLES[speaker] == "user" and (embedded := _EMBEDDED_PATH.search(value)):
        raise DataError(
            f"turn {number} holds {_short(embedded[0])!r}, a path within the text. Write <image> there and list the path under "
            "'image'.",
            reason="placeholder_place",
        )
    pieces = _PLACEHOLDER.split(value)
    if ROLES[speaker] != "user" and len(pieces) > 1:
        raise DataError(
            f"turn {number} is from {speaker!r} and holds {pieces[1]}, which only a turn from 'human' may. "
            "Move the placeholder or drop the row.",
            reason="placeholder_place",
        )
    return ROLES[speaker], pieces


def _check_counts(said: list[tuple[Role, list[str]]], media: Mapping[str, Sequence[Part]]) -> None:
    for marker, parts in media.items():
        counts = {number: pieces.count(marker) for number, (_, pieces) in enumerate(said, start=1) if marker in pieces}
        found, listed = sum(counts.values()), len(parts)
        if found == listed:
            continue
        where = f"turn {next(iter(counts))} has" if len(counts) == 1 else "the turns have" if counts else "no turn has"
        noun = marker.strip("<>")
        remedy = "Add the path" if found > listed else f"Write {marker} where it belongs"
        near = next(
            (
                f" Turn {number} has {match[0]!r}; a placeholder is written {marker}."
                for number, (_, pieces) in enumerate(said, start=1)
                for piece in pieces
                if piece not in media and (match := _NEAR_PLACEHOLDER.search(piece)) and match[1].lower() == noun
            ),
            "",
        )
        placeholders = f"{found} {marker} placeholders" if found > 1 else f"{found or 'a'} {marker} placeholder"
        raise DataError(
            f"{where} {placeholders} but the row lists {listed or 'no'} {noun}{'s' if listed > 1 else ''}. "
            f"{remedy}{'s' if abs(found - listed) > 1 and found > listed else ''} or drop the row.{near}",
            reason="placeholder_count",
        )


def _turns(said: list[tuple[Role, list[str]]], media: Mapping[str, Sequence[Part]]) -> Iterable[Turn]:
    left = {marker: iter(parts) for marker, parts in media.items()}
    for role, pieces in said:
        parts = (next(left[piece]) if piece in left else TextPart(piece) for piece in pieces if piece)
        yield Turn(role=role, parts=tuple(parts))


@dataclass(frozen=True)
class _Paths:
    """Turns the paths of a row into paths on disk, under the root."""

    root: Path
    allow_absolute: bool

    def check(self, path: str, noun: str) -> Path:
        """The path on disk of one medium.

        Raises:
            DataError: a URL, an absolute path where they are not allowed, or a path out of the root.
        """
        if _URL.match(path):
            raise DataError(
                f"{noun} {_short(path)!r} is a URL; media are read from disk only. Download it under data.root.",
                reason="url",
            )
        if "\0" in path:
            raise DataError(
                f"{noun} {_short(path)!r} holds a zero byte and can name no file. Mend or drop the row.",
                reason="bad_media",
            )
        if _WINDOWS_PATH.match(path):
            raise DataError(
                f"{noun} {_short(path)!r} is an absolute path of Windows. Make it relative to data.root, with / between the "
                "directories.",
                reason="absolute_path",
            )
        if os.path.isabs(path):
            if not self.allow_absolute:
                raise DataError(
                    f"{noun} {_short(path)!r} is an absolute path. Make it relative to data.root, or set "
                    "data.allow_absolute_paths=true.",
                    reason="absolute_path",
                )
            return Path(path)
        if os.pardir in path and os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise DataError(
                f"{noun} {_short(path)!r} leaves data.root {str(self.root)!r}. Keep media below the root.",
                reason="path_leaves_root",
            )
        return self.root / path


def _images(row: dict[str, object], paths: _Paths) -> list[Part]:
    return [ImagePart(paths.check(path, "image")) for path in cast(list[str], _listed(row, "image"))]


def _videos(row: dict[str, object], paths: _Paths) -> list[Part]:
    """Videos of a row; a list of image files is the frames of one video, a list of lists those of several.

    A GIF is a video of its own, and so is a WebP that stands alone: either may be animated.
    """
    listed = _listed(row, "video", frames=True)
    names = [entry for entry in listed if isinstance(entry, str)]
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    animated = suffixes == {".webp"} and len(names) == 1
    if len(names) == len(listed) and names and suffixes <= _FRAME_SUFFIXES and not animated:
        return [VideoPart(tuple(paths.check(name, "video frame") for name in names))]
    return [
        VideoPart(paths.check(entry, "video"))
        if isinstance(entry, str)
        else VideoPart(tuple(paths.check(name, "video frame") for name in entry))
        for entry in listed
    ]


def _listed(row: dict[str, object], noun: str, *, frames: bool = False) -> list[str | list[str]]:
    """What stands under `noun` or `nouns`; null, an empty string and an empty list mean nothing."""
    filled = [(key, row[key]) for key in (noun, f"{noun}s") if row.get(key) not in (None, "", [])]
    if len(filled) > 1:
        raise DataError(
            f"the row has both '{noun}' and '{noun}s'. Keep one of the two, listing all.", reason="ambiguous_media"
        )
    if not filled:
        return []
    key, value = filled[0]
    entries = cast(list[object], value) if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, str) and _LIST_AS_TEXT.fullmatch(entry.strip()):
            raise DataError(
                f"{key!r} holds a list written as text ({_short(entry)}). Write it as a JSON list, without quotes around it.",
                reason="bad_media",
            )
        fits = isinstance(entry, str) or (
            frames and isinstance(entry, list) and _all_strings(cast(list[object], entry))
        )
        if not fits or not entry:
            raise DataError(
                f"{key!r} holds {_kind(entry) if entry != '' else 'an empty string'}; it must be a path or a list of "
                "paths.",
                reason="bad_media",
            )
    return cast(list[str | list[str]], entries)


def _all_strings(entries: list[object]) -> bool:
    return all(isinstance(entry, str) and entry for entry in entries)


def _kind(value: object) -> str:
    """What a JSON value is, as the user would call it."""
    if value is None:
        return "null"
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value == []:
        return "an empty list"
    return kinds.get(type(value), "a number")


def _short(path: str) -> str:
    return path if len(path) <= 120 else f"{path[:117]}..."
