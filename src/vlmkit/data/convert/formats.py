"""The shapes of annotation that are understood, each a pure function from what was read to a LLaVA row.

Sources: Hugging Face chat templates (`messages` with content lists), ShareGPT (`conversations`), Alpaca (`instruction`,
`input`, `output`, `history`), the same with the `images`, `videos`, `system` and `history` of LLaMA-Factory and ms-swift, COCO
caption files, and VQA v2 question and annotation files, as their makers describe them.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from vlmkit.data.fields import refuse_unsupported
from vlmkit.errors import ConfigError, DataError

Format = Literal["messages", "sharegpt", "qa", "coco", "vqa2"]
FORMATS: tuple[Format, ...] = ("messages", "sharegpt", "qa", "coco", "vqa2")
SPEAKERS = {
    **dict.fromkeys(("user", "human"), "human"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "gpt"),
    "system": "system",
}
GUESSES: Mapping[str, Sequence[str]] = {
    "id": ("id", "question_id", "uid", "sample_id"),
    "image": ("image", "images", "image_path", "image_file", "img", "file_name"),
    "video": ("video", "videos", "video_path"),
    "question": ("question", "query", "prompt", "instruction", "problem"),
    "answer": ("answer", "response", "output", "caption", "label", "solution"),
    "system": ("system",),
    "messages": ("messages", "conversations", "conversation"),
}
"""Names that a field goes by where none is given, the likeliest first."""
_FILLED_ELSEWHERE = {"<bbox>": "objects", "<ref-object>": "objects", "<audio>": "audios"}
_MARKERS = {"image": "<image>", "video": "<video>"}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where a row keeps what: the name of each field, with dots for fields within fields.

    Attributes:
        names: By field of `GUESSES`; a field without a name is looked for under its `GUESSES`.
        image: Template of an image's path from the row's fields, such as `train/{image_id:012d}.jpg`; None: as written.
        question: What is asked where the annotation has no question.
    """

    names: Mapping[str, str]
    image: str | None
    question: str

    def get(self, row: Row, field: str) -> object:
        """The value of a field; None where the row has none.

        Raises:
            DataError: a field that was given by name is not there.
        """
        if name := self.names.get(field):
            found, missing = _walk(row, name)
            if missing:
                raise DataError(
                    f"the row has no field {name!r} (fields.{field}). It has: {', '.join(map(repr, row))}.",
                    reason="no_field",
                )
            return found
        return next((row[name] for name in GUESSES[field] if row.get(name) not in (None, "", [])), None)

    def images(self, row: Row) -> list[object]:
        """Images of a row: paths, or whatever a row holds in their place.

        Raises:
            DataError: the template names a field that the row does not have.
        """
        if self.image is None:
            return _as_list(self.get(row, "image"))
        try:
            return [_Template().format(self.image, **row)]
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            why = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"image={self.image} does not fit the row ({why}). It has: {', '.join(map(repr, row))}.",
                reason="no_field",
            ) from None


class _Template(string.Formatter):
    """Format strings with whole numbers written as text where a table gives no numbers."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec.endswith("d") and isinstance(value, str) and value.isdigit():
            value = int(value)
        return super().format_field(value, format_spec)

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        """Only fields by name: no attributes, no indices."""
        return kwargs[field_name], field_name


def from_messages(row: Row, fields: Fields) -> Row:
    """A row of chat messages: `role` and `content`, a text or a list of parts.

    A part `{"type": "image"}` without a path takes the next image that the row lists.

    Raises:
        DataError: a message or part that is none, an unknown role, more images said than listed.
    """
    refuse_unsupported(row, what="the row")
    listed = {"image": fields.images(row), "video": _as_list(fields.get(row, "video"))}
    own: dict[str, list[object]] = {"image": [], "video": []}
    said: list[tuple[str, str]] = []
    for number, message in enumerate(_list_of(row, fields), start=1):
        refuse_unsupported(message, what=f"turn {number}")
        speaker = _speaker(message, number, "role")
        said.append((speaker, _content(message.get("content"), number, listed, own)))
    media = {kind: [*own[kind], *listed[kind]] if own[kind] else listed[kind] for kind in listed}
    return _row(row, fields, _with_system(row, fields, said), media)


def from_sharegpt(row: Row, fields: Fields) -> Row:
    """A row of turns: `from` and `value`.

    Raises:
        DataError: a turn that is none, or an unknown speaker.
    """
    refuse_unsupported(row, what="the row")
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(_list_of(row, fields), start=1):
        refuse_unsupported(turn, what=f"turn {number}")
        value = turn.get("value")
        if not isinstance(value, str):
            raise DataError(f"turn {number} has no text as 'value'. Mend or drop the row.", reason="bad_turn")
        said.append((_speaker(turn, number, "from"), value))
    return _row(
        row,
        fields,
        _with_system(row, fields, said),
        {"image": fields.images(row), "video": _as_list(fields.get(row, "video"))},
    )


def from_qa(row: Row, fields: Fields) -> Row:
    """A row with a question and its answer, and the exchanges before it where it has a `history`.

    Raises:
        DataError: one of the two is missing or no text, the history is no list of exchanges, or choices would be lost.
    """
    refuse_unsupported(row, what="the row")
    question, answer = _question(row, fields), fields.get(row, "answer")
    for field, found in (("question", question), ("answer", answer)):
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            told = "has no" if found is None else f"has {type(found).__name__} as"
            raise DataError(
                f"the row {told} {field}. Name its field with fields.{field}=NAME; the row has: "
                f"{', '.join(map(repr, row))}.",
                reason=f"no_{field}",
            )
    _refuse_lost_choices(row, fields, str(question))
    said = _with_system(row, fields, [*_history(row), ("human", str(question)), ("gpt", str(answer))])
    return _row(row, fields, said, {"image": fields.images(row), "video": _as_list(fields.get(row, "video"))})


def _refuse_lost_choices(row: Row, fields: Fields, question: str) -> None:
    """Refuse a row whose choices are not in its question: they would be lost.

    Raises:
        DataError: there are such.
    """
    for name in ("choices", "options"):
        choices = _as_list(row.get(name)) if name not in fields.names.values() else []
        if choices and not all(str(choice) in question for choice in choices):
            raise DataError(
                f"the row has {name!r}, and not all of them are in its question, so they would be lost. Write them into the "
                "question, or drop the field.",
                reason="unsupported_field",
            )


def _question(row: Row, fields: Fields) -> object:
    """What is asked; of an Alpaca row the instruction and its input."""
    question, more = fields.get(row, "question"), row.get("input")
    alpaca = "question" not in fields.names and question is not None and question == row.get("instruction")
    return f"{question}\n{more}" if alpaca and isinstance(more, str) and more else question


def _history(row: Row) -> list[tuple[str, str]]:
    """The exchanges before the last one: pairs of question and answer.

    Raises:
        DataError: they are something else.
    """
    said: list[tuple[str, str]] = []
    for number, pair in enumerate(_as_list(row.get("history")), start=1):
        match pair:
            case [str(question), str(answer)]:
                said += [("human", question), ("gpt", answer)]
            case _:
                raise DataError(
                    f"exchange {number} of its history is no pair of texts. Mend or drop the row.", reason="bad_turn"
                )
    return said


def _with_system(row: Row, fields: Fields, said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns, with the row's own system text before them where they have none."""
    system = fields.get(row, "system")
    if not isinstance(system, str) or not system or any(speaker == "system" for speaker, _ in said):
        return said
    return [("system", system), *said]


def _refuse_unfilled(row: Row, said: list[tuple[str, str]]) -> None:
    """Refuse texts with markers that another tool fills from the row's `objects` or `audios`.

    Raises:
        DataError: there is one.
    """
    for marker, field in _FILLED_ELSEWHERE.items():
        if row.get(field) and any(marker in text for _, text in said):
            raise DataError(
                f"its text holds {marker}, to be filled from {field!r}. Write the boxes into the text (0 to 1000) or drop "
                "the row.",
                reason="unfilled_marker",
            )


def coco_rows(whole: Row, fields: Fields) -> Iterator[tuple[int, object]]:
    """The captions of a COCO file as rows with `id`, `image`, `question` and `answer`; numbers count annotations."""
    files = {image.get("id"): image for image in _dicts(whole.get("images"))}

    def row(caption: Row) -> Row:
        image = files.get(caption.get("image_id"))
        if image is None:
            raise DataError(
                f"image_id {caption.get('image_id')!r} is not among the file's images. Add the image or drop the caption.",
                reason="unknown_image",
            )
        return {**image, **caption, "image": image.get("file_name"), "question": fields.question}

    return _each(whole.get("annotations"), row)


def vqa2_rows(questions: Row, annotations: Row) -> Iterator[tuple[int, object]]:
    """The questions of VQA v2 with the answer most gave (`multiple_choice_answer`); numbers count questions."""
    answers = {answer.get("question_id"): answer for answer in _dicts(annotations.get("annotations"))}
    subset = questions.get("data_subtype") or annotations.get("data_subtype")

    def row(question: Row) -> Row:
        answer = answers.get(question.get("question_id"))
        if answer is None:
            raise DataError(
                f"question_id {question.get('question_id')!r} has no annotation. Give the annotations of the same split.",
                reason="no_answer",
            )
        return {"data_subtype": subset, **question, "answer": answer.get("multiple_choice_answer")}

    return _each(questions.get("questions"), row)


def _each(entries: object, row: Callable[[Row], Row]) -> Iterator[tuple[int, object]]:
    """Number and row of each entry; the error in place of a row that cannot be made."""
    for number, entry in enumerate(cast(list[object], entries or []), start=1):
        try:
            if not isinstance(entry, dict):
                raise DataError(
                    f"the entry is a {type(entry).__name__}, not an object. Mend or drop it.", reason="not_an_object"
                )
            yield number, row(cast(Row, entry))
        except DataError as error:
            yield number, error


def detect(row: object) -> Format:
    """Which of the formats that have rows a first row is of.

    Raises:
        ConfigError: it is of none of them; the message lists its fields.
    """
    if isinstance(row, dict):
        keys = set(cast(Row, row))
        turns = next((cast(Row, row)[name] for name in GUESSES["messages"] if name in keys), None)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "messages" if "role" in turns[0] else "sharegpt"
        if keys & set(GUESSES["question"]) and keys & set(GUESSES["answer"]):
            return "qa"
        told = f"its first row has the fields {', '.join(map(repr, cast(Row, row)))}"
    else:
        told = f"its first row is a {type(row).__name__}, not an object"
    raise ConfigError(
        f"format=auto: {told}, which is none of {', '.join(FORMATS)}. Name the format with format=, and the fields with "
        "fields.question=NAME and so on."
    )


ROW_FORMATS: Mapping[str, Callable[[Row, Fields], Row]] = {
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "qa": from_qa,
    "coco": from_qa,
    "vqa2": from_qa,
}


def _row(row: Row, fields: Fields, said: list[tuple[str, str]], media: Mapping[str, list[object]]) -> Row:
    """The LLaVA row; media that no turn places stand at the beginning of the first human turn.

    Raises:
        DataError: a text has markers that something else in the row would have to fill.
    """
    _refuse_unfilled(row, said)
    made: Row = {}
    if (found := fields.get(row, "id")) is not None:
        made["id"] = found
    for kind, entries in media.items():
        if entries:
            made[kind] = entries[0] if len(entries) == 1 and not isinstance(entries[0], list) else entries
    unplaced = "".join(
        _MARKERS[kind] + "\n"
        for kind in ("video", "image")
        for _ in media[kind]
        if not any(_MARKERS[kind] in text for _, text in said)
    )
    turns: list[Row] = []
    for speaker, text in said:
        if speaker == "human" and unplaced:
            text, unplaced = unplaced + text, ""
        turns.append({"from": speaker, "value": text})
    return {**made, "conversations": turns}


def _list_of(row: Row, fields: Fields) -> list[Row]:
    found = fields.get(row, "messages")
    if not isinstance(found, list) or not found:
        raise DataError(
            f"the row has no list of messages. Name its field with fields.messages=NAME; the row has: "
            f"{', '.join(map(repr, row))}.",
            reason="no_conversations",
        )
    for number, message in enumerate(cast(list[object], found), start=1):
        if not isinstance(message, dict):
            raise DataError(
                f"turn {number} is a {type(message).__name__}, not an object. Mend or drop the row.", reason="bad_turn"
            )
    return cast(list[Row], found)


def _speaker(turn: Row, number: int, key: str) -> str:
    told = turn.get(key)
    if told not in SPEAKERS:
        raise DataError(
            f"turn {number} is from {told!r} ({key!r}), an unknown role. Known roles: {', '.join(SPEAKERS)}.",
            reason="unknown_role",
        )
    return SPEAKERS[cast(str, told)]


def _content(content: object, number: int, listed: dict[str, list[object]], own: dict[str, list[object]]) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(
            f"turn {number} has no text or list of parts as 'content'. Mend or drop the row.", reason="bad_turn"
        )
    pieces: list[str] = []
    for part in _dicts(content, complain=f"turn {number} holds a part that is not an object. Mend or drop the row."):
        kind = str(part.get("type", "text" if "text" in part else "")).removesuffix("_url")
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(_plain(part["text"], number))
        elif kind in _MARKERS:
            pieces.append(_MARKERS[kind])
            own[kind].append(_own_medium(part, kind, number, listed[kind]))
        else:
            raise DataError(
                f"turn {number} holds a part of type {part.get('type')!r}; known: text, image, video.",
                reason="bad_turn",
            )
    return "".join(pieces)


def _plain(text: str, number: int) -> str:
    for marker in _MARKERS.values():
        if marker in text:
            raise DataError(
                f"turn {number} has {marker} typed in a text part, where it would become a placeholder. Reword it.",
                reason="placeholder_in_text",
            )
    return text


def _own_medium(part: Row, kind: str, number: int, listed: list[object]) -> object:
    found = next((part[key] for key in (kind, f"{kind}_url", "path", "url") if part.get(key)), None)
    if isinstance(found, dict) and isinstance(cast(Row, found).get("url"), str):
        found = found["url"]
    if found is None:
        if not listed:
            raise DataError(
                f"turn {number} holds more {kind}s than the row lists. Add the path or drop the row.",
                reason="placeholder_count",
            )
        found = listed.pop(0)
    return found.removeprefix("file://") if isinstance(found, str) else found


def _dicts(found: object, complain: str = "") -> list[Row]:
    entries = cast(list[object], found) if isinstance(found, list) else []
    if complain and not all(isinstance(entry, dict) for entry in entries):
        raise DataError(complain, reason="bad_turn")
    return [cast(Row, entry) for entry in entries if isinstance(entry, dict)]


def _as_list(found: object) -> list[object]:
    if found in (None, "", []):
        return []
    return list(cast(list[object], found)) if isinstance(found, list) else [found]


def _walk(row: Row, name: str) -> tuple[object, bool]:
    if name in row:
        return row[name], False
    place: object = row
    for step in name.split("."):
        if not isinstance(place, dict) or step not in place:
            return None, True
        place = place[step]
    return place, False


__all__ = ["FORMATS", "GUESSES", "ROW_FORMATS", "Fields", "Format", "coco_rows", "detect", "vqa2_rows"]
