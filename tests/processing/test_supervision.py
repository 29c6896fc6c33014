"""Supervised stretches: found by the shape of a conversation exactly as by rendering its every beginning."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.conversation import Conversation, ImagePart, Role, TextPart, Turn, VideoPart
from vlmkit.demo import tiny_checkpoints
from vlmkit.errors import DataError
from vlmkit.processing import supervision
from vlmkit.processing.processor import Processor, load_processor
from vlmkit.processing.supervision import render

TRIMMING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{{ part.text | trim if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(["assistant", "<|im_end|>", " red ", "\n", "<|im_start|>assistant\n", "\ue0000\ue001", "😀é"]),
)
PARTS = st.one_of(
    TEXTS.map(TextPart), st.just(ImagePart(Path("a.png"))), st.just(VideoPart((Path("a.png"), Path("b.png"))))
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns: list[Turn] = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5)):
        parts = draw(st.lists(PARTS if role == "user" else TEXTS.map(TextPart), min_size=1, max_size=3))
        turns.append(Turn(role=role, parts=tuple(parts)))
    return Conversation(turns=(*turns, Turn(role="assistant", parts=(TextPart(draw(TEXTS)),))))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return load_processor(tiny_checkpoints(tmp_path_factory.mktemp("tiny")).vision_language)


@pytest.fixture(scope="module")
def trimming(processor: Processor) -> Processor:
    """The same with a template that strips spaces: not every conversation is rendered as its shape."""
    changed = copy.deepcopy(processor)
    changed.hf.chat_template = TRIMMING
    changed.shapes.clear()
    return changed


def stretches(conversation: Conversation, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Supervised stretches by every beginning, as text; the reference."""
    with monkeypatch.context() as patch:
        patch.setattr(supervision, "_spans_by_shape", lambda *_: None)
        rendered = render(conversation, processor)
    return [rendered.text[start:end] for start, end in rendered.spans]


@given(conversation=conversations())
@settings(max_examples=150, deadline=None)
def test_by_shape_equals_by_every_beginning(
    conversation: Conversation, processor: Processor, trimming: Processor
) -> None:
    monkeypatch = pytest.MonkeyPatch()
    for chosen in (processor, trimming):
        try:
            expected = stretches(conversation, chosen, monkeypatch)
        except DataError:
            with pytest.raises(DataError, match="rendered in another way"):
                render(conversation, chosen)
            continue
        rendered = render(conversation, chosen)
        assert [rendered.text[start:end] for start, end in rendered.spans] == expected
        assert all(text.endswith("<|im_end|>") for text in expected)


def test_a_shape_is_rendered_by_its_beginnings_only_once(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*texts: str) -> Conversation:
        roles: list[Role] = ["user", "assistant"]
        turns = [Turn(role=roles[place % 2], parts=(TextPart(text),)) for place, text in enumerate(texts)]
        return Conversation(turns=tuple(turns))

    processor.shapes.clear()
    render(said("one", "two", "three", "four"), processor)
    monkeypatch.setattr(supervision, "_spans", lambda *_: pytest.fail("rendered beginning by beginning again"))
    rendered = render(said("a", "b <|im_end|>", "c", "d"), processor)
    assert [rendered.restore(rendered.text[start:end]) for start, end in rendered.spans] == [
        "b <|im_end|><|im_end|>",
        "d<|im_end|>",
    ]


def test_a_processor_travels_with_a_compiled_template(processor: Processor) -> None:
    conversation = Conversation(turns=(Turn(role="assistant", parts=(TextPart("yes"),)),))
    here = render(conversation, processor)
    assert render(conversation, pickle.loads(pickle.dumps(processor))) == here
