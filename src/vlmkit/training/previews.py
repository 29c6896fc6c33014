"""A few samples with the model's answers, as pictures: what figures do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmkit.conversation import Conversation, ImagePart, TextPart
from vlmkit.generation.backend import GenerationBackend, GenerationParams
from vlmkit.processing.media import load_image

_SIDE, _TEXT_SIZE, _COLUMNS, _MARGIN = 448, 16, 52, 8


class Previews:
    """Asks the first question of a few samples and draws image, question, expected and given answer.

    Args:
        conversations: The samples.
        make_backend: Makes what answers, as the model stands after so many steps.
        directory: Pictures go to `<directory>/step-N/sample-K.png`.
        params: How answers are decoded.
        loggers: Those that take images are given the pictures.
    """

    def __init__(
        self,
        *,
        conversations: Sequence[Conversation],
        make_backend: Callable[[int], GenerationBackend],
        directory: Path,
        params: GenerationParams,
        loggers: Sequence[Any],
    ) -> None:
        self.asked = [asked for asked in map(first_question, conversations) if asked is not None]
        self.make_backend = make_backend
        self.directory = directory
        self.params = params
        self.loggers = loggers

    def __call__(self, step: int) -> dict[str, float]:
        """Draw the pictures; no figures."""
        answers = self.make_backend(step).generate([question for question, _ in self.asked], self.params)
        place = self.directory / f"step-{step:06d}"
        place.mkdir(parents=True, exist_ok=True)
        for number, ((question, expected), answer) in enumerate(zip(self.asked, answers, strict=True), 1):
            picture = draw(question, expected=expected, answer=answer.error or answer.text)
            picture.save(place / f"sample-{number}.png")
            for logger in self.loggers:
                show(logger, f"val/sample-{number}", picture, step)
        return {}


def first_question(conversation: Conversation) -> tuple[Conversation, str] | None:
    """What comes before the first answer, and that answer; None where there is none."""
    for place, turn in enumerate(conversation.turns):
        if turn.role == "assistant" and place:
            return Conversation(conversation.turns[:place], conversation.origin), _text([turn])
    return None


def draw(question: Conversation, *, expected: str, answer: str) -> Image.Image:
    """The first image, and below it what was asked, expected and answered."""
    font = ImageFont.load_default(_TEXT_SIZE)
    lines: list[tuple[str, str]] = []
    for name, text, colour in (
        ("asked", _text(question.turns), "#333333"),
        ("expected", expected, "#1f4e79"),
        ("answered", answer, "#1a7f37" if answer.strip() == expected.strip() else "#c0504d"),
    ):
        lines += [(line, colour) for line in wrap(f"{name}: {text}", _COLUMNS)[:6]]
    image = _first_image(question)
    top = 0 if image is None else image.height
    height = top + 2 * _MARGIN + len(lines) * (_TEXT_SIZE + 4)
    page = Image.new("RGB", (_SIDE, height), "white")
    if image is not None:
        page.paste(image, ((_SIDE - image.width) // 2, 0))
    pen = ImageDraw.Draw(page)
    for number, (line, colour) in enumerate(lines):
        pen.text((_MARGIN, top + _MARGIN + number * (_TEXT_SIZE + 4)), line, fill=colour, font=font)
    return page


def show(logger: Any, name: str, picture: Image.Image, step: int) -> None:
    """Give a picture to a logger that takes images; others are left alone."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=name, images=[picture], step=step)
    elif hasattr(experiment := logger.experiment, "add_image"):  # TensorBoard
        experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif hasattr(experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow
        experiment.log_image(logger.run_id, picture, artifact_file=f"{name}-step-{step:06d}.png")


def _text(turns: Sequence[Any]) -> str:
    return " ".join(part.text for turn in turns for part in turn.parts if isinstance(part, TextPart)).strip()


def _first_image(conversation: Conversation) -> Image.Image | None:
    for part in conversation.media:
        if isinstance(part, ImagePart):
            image = Image.fromarray(load_image(part).permute(1, 2, 0).contiguous().numpy())
            scale = _SIDE / max(image.size)
            return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return None
