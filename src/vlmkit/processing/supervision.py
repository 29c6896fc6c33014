"""Which characters of a rendered conversation are supervised, told by the chat template itself.

What is trained is what the template puts between the generation prompt and the end of an assistant turn, end token
included: exactly what a model has to produce after that prompt. It is found by rendering the conversation up to each
assistant turn, never by looking for token ids, so a user who types "assistant" or `<|im_end|>` opens nothing.

Rendering every beginning of a conversation costs the square of its turns. So it is done once for all conversations
of one shape (who speaks, and where media stand), with words nobody says in place of the texts; a conversation whose
rendering is exactly these pieces with its own texts between them has its stretches at the same pieces. One that a
template renders in another way (it strips spaces, or leaves out what was thought) is rendered beginning by beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, zip_longest
from typing import Any, cast

from vlmkit.conversation import Conversation, ImagePart, TextPart
from vlmkit.errors import DataError
from vlmkit.processing.processor import Processor

Span = tuple[int, int]
Message = dict[str, Any]
_MAX_SHAPES = 4096
_PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the template renders it.

    Attributes:
        text: Special tokens in it are the template's; those typed by people are written with the escape character.
        spans: Start and end of each supervised stretch of `text`, in characters.
        escape: Character that stands before each character of a special token typed by people; "" if there is none.
    """

    text: str
    spans: tuple[Span, ...]
    escape: str

    def restore(self, stretch: str) -> str:
        """A stretch of `text` as people wrote it."""
        return stretch.replace(self.escape, "") if self.escape else stretch


def render(conversation: Conversation, processor: Processor, *, generation_prompt: bool = False) -> Rendered:
    """Render a conversation and find its supervised stretches.

    Args:
        conversation: What was said.
        processor: Whose template.
        generation_prompt: End with the template's generation prompt; then nothing is supervised.

    Raises:
        DataError: the template refuses the conversation, or does not render a turn the same way once more turns
            follow, so that its assistant turns cannot be told apart.
    """
    messages, escape = _messages(conversation, processor)
    text = _apply(messages, processor, generation_prompt)
    if generation_prompt:
        return Rendered(text=text, spans=(), escape=escape)
    spans = _spans_by_shape(messages, text, processor)
    if spans is None:
        spans = _spans(messages, text, processor)
    return Rendered(text=text, spans=spans, escape=escape)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a template writes around the texts of all conversations of one shape.

    Attributes:
        pieces: What stands before, between and after the texts: one more than there are texts.
        edges: Start and end of each supervised stretch: number of a piece, and the character in it.
    """

    pieces: tuple[str, ...]
    edges: tuple[tuple[tuple[int, int], tuple[int, int]], ...]


def _spans_by_shape(messages: list[Message], text: str, processor: Processor) -> tuple[Span, ...] | None:
    """The stretches of a conversation by those of its shape; None where it is not rendered as its shape is."""
    key = tuple((message["role"], tuple(part["type"] for part in message["content"])) for message in messages)
    if key not in processor.shapes:
        if len(processor.shapes) >= _MAX_SHAPES:
            processor.shapes.clear()
        processor.shapes[key] = _shape(messages, processor)
    shape = processor.shapes[key]
    if not isinstance(shape, _Shape):
        return None
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    starts: list[int] = []
    rebuilt: list[str] = []
    place = 0
    for piece, said in zip_longest(shape.pieces, texts, fillvalue=""):
        starts.append(place)
        rebuilt += (piece, said)
        place += len(piece) + len(said)
    if "".join(rebuilt) != text:
        return None
    return tuple((starts[first] + start, starts[last] + end) for (first, start), (last, end) in shape.edges)


def _shape(messages: list[Message], processor: Processor) -> _Shape | None:
    """Render a conversation of the same shape beginning by beginning; None where the template does not keep texts."""
    number = count()
    spoken = [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": f"\ue000{next(number)}\ue001"} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    words = [part["text"] for message in spoken for part in message["content"] if part["type"] == "text"]
    try:
        text = _apply(spoken, processor, False)
        spans = _spans(spoken, text, processor)
    except DataError:
        return None
    places = [text.find(word) for word in words]
    ends = [place + len(word) for place, word in zip(places, words, strict=True)]
    if -1 in places or places != sorted(places) or any(text.count(word) != 1 for word in words):
        return None
    pieces = tuple(text[start:end] for start, end in zip([0, *ends], [*places, len(text)], strict=True))

    def edge(character: int) -> tuple[int, int] | None:
        for piece, (start, end) in enumerate(zip([0, *ends], [*places, len(text)], strict=True)):
            if start <= character <= end:
                return piece, character - start
        return None

    edges = [(edge(start), edge(end)) for start, end in spans]
    if any(first is None or last is None for first, last in edges):
        return None
    return _Shape(pieces=pieces, edges=cast(Any, tuple(edges)))


def _spans(messages: list[Message], text: str, processor: Processor) -> tuple[Span, ...]:
    """Start and end of each supervised stretch, by rendering every beginning of the conversation."""
    return tuple(
        _span(messages, number, text, processor)
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    )


def _span(messages: list[Message], number: int, text: str, processor: Processor) -> Span:
    prompt = _apply(messages[:number], processor, True) if number else _first_prompt(messages, processor)
    through = _apply(messages[: number + 1], processor, False)
    if not (through.startswith(prompt) and text.startswith(through)):
        raise DataError(
            f"turn {number + 1} is rendered in another way once more turns follow, or not after the generation prompt, "
            "so what the model has to say there cannot be told. Use a chat template that renders turn by turn.",
            reason="template",
        )
    end = len(prompt)
    for match in processor.special_tokens.finditer(through, len(prompt)):
        end = match.end()
    return len(prompt), end if end > len(prompt) else len(through)


def _first_prompt(messages: list[Message], processor: Processor) -> str:
    """The generation prompt alone, for a conversation that opens with an assistant turn."""
    probe = [{"role": "user", "content": "x"}]
    return _apply(probe, processor, True)[len(_apply(probe, processor, False)) :]


def _messages(conversation: Conversation, processor: Processor) -> tuple[list[Message], str]:
    escape = _escape_for(conversation, processor)

    def hide(text: str) -> str:
        if not escape:
            return text
        return processor.special_tokens.sub(lambda found: escape + escape.join(found[0]), text)

    def content(part: object) -> dict[str, str]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": hide(part.text)}
        return {"type": "image" if isinstance(part, ImagePart) else "video"}

    messages = [{"role": turn.role, "content": [content(part) for part in turn.parts]} for turn in conversation.turns]
    return messages, escape


def _escape_for(conversation: Conversation, processor: Processor) -> str:
    """A character that occurs nowhere in the conversation, if anybody typed a special token; else ""."""
    texts = [part.text for turn in conversation.turns for part in turn.parts if isinstance(part, TextPart)]
    if not any(processor.special_tokens.search(text) for text in texts):
        return ""
    used = set().union(*texts)
    return next(chr(point) for point in _PRIVATE_USE if chr(point) not in used)


def _apply(messages: list[Message], processor: Processor, generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return processor.template.render(
            messages=messages, add_generation_prompt=generation_prompt, **processor.template_words
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses the conversation: {error}. Mend or drop the row.", reason="template"
        ) from error
