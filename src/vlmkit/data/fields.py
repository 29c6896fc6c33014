"""Fields of a row beside its text and media: those that are read, those that would change its meaning, all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from vlmkit.errors import DataError

ROW_FIELDS = frozenset({"id", "image", "images", "video", "videos", "conversations", "system"})
"""What is read of a row in the LLaVA format."""
TURN_FIELDS = frozenset({"from", "value"})
_TOOLS = "calls of tools are not trained"
_REASONING = "reasoning apart from the answer is not trained; write it into the answer, as the chat template has it"
_PREFERENCE = "preferences are not trained, only answers"
_SOUND = "sound is not read"
_UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), _TOOLS),
    **dict.fromkeys(("reasoning_content", "reasoning"), _REASONING),
    **dict.fromkeys(("rejected_response", "rejected_messages", "rejected_images", "rejected"), _PREFERENCE),
    **dict.fromkeys(("audio", "audios"), _SOUND),
}
_SUPERVISION = frozenset({"loss", "weight"})
_OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("image_path", "image_paths", "image_file", "img", "imgs"), "image"),
    **dict.fromkeys(("video_path", "video_paths", "video_file"), "video"),
}
_EMPTY = (None, "", [], {})


def refuse_unsupported(entry: Mapping[str, object], *, what: str) -> None:
    """Refuse a row, or one of its turns, with a field that changes what it teaches and that nothing here obeys.

    Args:
        entry: The row or turn.
        what: What messages call it: `the row`, or `turn 2`.

    Raises:
        DataError: `unsupported_field`.
    """
    for name in entry.keys() & (_UNSUPPORTED.keys() | _SUPERVISION):
        value = entry[name]
        if name in _SUPERVISION:
            if value is None or value is True or (value == 1 and not isinstance(value, str)):
                continue
            if not isinstance(value, bool | int | float):
                continue
            why = f"{name}={str(value).lower()}: every answer counts fully; data.sources has a weight for each manifest"
        elif value in _EMPTY:
            continue
        else:
            why = _UNSUPPORTED[name]
        raise DataError(
            f"{what} has {name!r}, which would change its meaning ({why}). Drop the field or the row.",
            reason="unsupported_field",
        )


def refuse_unread_media(row: Mapping[str, object]) -> None:
    """Refuse a row that names media only where nobody looks.

    Raises:
        DataError: `unsupported_field`.
    """
    for name, noun in _OTHER_NAMES.items():
        if row.get(name) not in _EMPTY and all(row.get(key) in _EMPTY for key in (noun, f"{noun}s")):
            raise DataError(
                f"the row has {name!r}, which is not read, and no {noun!r}. Rename the field and write <{noun}> where it "
                "belongs; vlmkit-convert does both.",
                reason="unsupported_field",
            )


def unread_fields(raw: object) -> Iterator[str]:
    """Names of the fields of a usable row that are not read, those of its turns as `conversations.NAME`; each once."""
    row = cast("Mapping[str, object]", raw) if isinstance(raw, dict) else {}
    yield from row.keys() - ROW_FIELDS
    turns = row.get("conversations")
    names = set[str]()
    for turn in cast("list[object]", turns) if isinstance(turns, list) else []:
        names |= set(cast("Mapping[str, object]", turn)) - TURN_FIELDS if isinstance(turn, dict) else set()
    yield from (f"conversations.{name}" for name in names)
