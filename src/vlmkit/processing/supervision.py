"""Which characters of a rendered conversation are supervised, told by the chat template itself.

What is trained is what the template puts between the generation prompt and the end of an assistant turn, end token
included: exactly what a model has to produce after that prompt. It is found by rendering the conversation up to each
assistant turn, never by looking for token ids, so a user who types "assistant" or `<|im_end|>` opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmkit.conversation import Conversation, ImagePart, TextPart
from vlmkit.errors import DataError
from vlmkit.processing.processor import Processor

Span = tuple[int, int]
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
    spans = tuple(
        _span(messages, number, text, processor)
        for number, turn in enumerate(conversation.turns)
        if turn.role == "assistant"
    )
    return Rendered(text=text, spans=spans, escape=escape)


def _span(messages: list[dict[str, Any]], number: int, text: str, processor: Processor) -> Span:
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


def _first_prompt(messages: list[dict[str, Any]], processor: Processor) -> str:
    """The generation prompt alone, for a conversation that opens with an assistant turn."""
    probe = [{"role": "user", "content": "x"}]
    return _apply(probe, processor, True)[len(_apply(probe, processor, False)) :]


def _messages(conversation: Conversation, processor: Processor) -> tuple[list[dict[str, Any]], str]:
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


def _apply(messages: list[dict[str, Any]], processor: Processor, generation_prompt: bool) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=processor.hf.chat_template,
            add_generation_prompt=generation_prompt,
            **processor.hf.tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}", reason="template") from error
    return rendered[0]
