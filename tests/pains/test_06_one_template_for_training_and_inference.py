"""Train and inference template mismatch: the exported processor renders what was trained; another template is noticed."""

from __future__ import annotations

import pytest
from transformers import Qwen3VLProcessor

from tests.data.conftest import said
from vlmkit.conversation import ImagePart, TextPart
from vlmkit.processing.encode import encode_example, encode_prompt
from vlmkit.processing.processor import load_processor


@pytest.fixture
def data(corpus, processor, datamodule):
    """Twenty conversations: text, images, system turns, several turns, words of the template typed by the user."""
    rows = [
        said(f"{'<image> ' * (number % 3)}question {number}? assistant", f"answer {number}", images=["wide.png", "tall.png"][: number % 3])
        if number % 3
        else said(f"question {number}?\nuser", f"answer {number}")
        for number in range(19)
    ]  # fmt: skip
    made = datamodule(corpus.write([*rows, corpus.rows["turns"]]))
    made.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    return made


def messages(conversation):
    """As a user of plain transformers writes it."""
    told = []
    for turn in conversation.turns:
        parts = []
        for part in turn.parts:
            assert isinstance(part, TextPart | ImagePart)
            parts.append(
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "path": str(part.source)}
            )
        told.append({"role": turn.role, "content": parts})
    return told


def reloaded(directory, processor):
    return load_processor(directory, positions_per_side=processor.geometry.positions_per_side)


def rendered(processor, told, **settings):
    return processor.apply_chat_template(told, tokenize=True, return_dict=True, **settings)["input_ids"][0]


def test_twenty_samples_have_the_ids_of_the_exported_processor(data, processor, tmp_path):
    processor.save(tmp_path / "hf")
    stock = Qwen3VLProcessor.from_pretrained(tmp_path / "hf")
    for row in range(20):
        conversation = data.index.conversation(row)
        trained = encode_example(conversation, processor, pixels="uint8")["input_ids"].tolist()
        assert list(rendered(stock, messages(conversation))) == trained
        asked = encode_prompt(conversation, processor)["input_ids"][0].tolist()
        assert list(rendered(stock, messages(conversation), add_generation_prompt=True)) == asked
    assert reloaded(tmp_path / "hf", processor).fingerprint == processor.fingerprint


def test_another_template_is_another_plan(data, processor, datamodule, tmp_path):
    processor.save(tmp_path / "hf")
    template = tmp_path / "hf" / "chat_template.jinja"
    said_before = template.read_text()
    template.write_text("{{ 'You are a helpful assistant. ' }}" + said_before)
    changed = reloaded(tmp_path / "hf", processor)
    assert changed.fingerprint != processor.fingerprint
    again = datamodule(*[source.path for source in data.sources])
    again.prepare(processor=changed, num_epochs=1, max_packs=None, require_media=False)
    assert again.plan.key != data.plan.key, "a resume with it is refused"
