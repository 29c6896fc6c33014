"""The backend as evaluations use it: any batch size, the same answers; a bad question costs itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn
from vlmkit.generation.backend import GenerationParams
from vlmkit.generation.hf_backend import HFBackend


@pytest.fixture(scope="module")
def backend(tiny):
    return HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1)


@pytest.fixture(scope="module")
def questions(pictures):
    def ask(*parts):
        return Conversation((Turn("user", tuple(TextPart(p) if isinstance(p, str) else p for p in parts)),))

    return [
        ask(ImagePart(pictures[0]), "what is it?"),
        ask("a text of its own, without an image"),
        ask(ImagePart(pictures[1]), ImagePart(pictures[2]), "which of the two, and why?"),
        ask("short"),
    ]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_answers_do_not_depend_on_the_batch(backend, questions, batch_size):
    alone = backend.generate(questions, GenerationParams(max_new_tokens=8, batch_size=1))
    together = backend.generate(questions, GenerationParams(max_new_tokens=8, batch_size=batch_size))
    assert [(one.text, one.num_tokens) for one in together] == [(one.text, one.num_tokens) for one in alone]
    assert all(one.num_tokens <= 8 and one.error is None for one in together)


def test_a_question_that_cannot_be_encoded_ends_nothing(backend, questions, tmp_path):
    gone = Conversation((Turn("user", (ImagePart(tmp_path / "gone.png"), TextPart("what?"))),))
    answers = backend.generate([questions[1], gone], GenerationParams(max_new_tokens=2, batch_size=2))
    assert answers[0].error is None
    assert "gone.png' not found" in (answers[1].error or "")


def test_identity_follows_the_weights(backend, tiny):
    assert (
        backend.identity["weights"]
        == HFBackend(directory=tiny.vision_language, device="cpu", dtype="float32", workers=1).identity["weights"]
    )
    assert backend.identity["processor"] == backend.processor.fingerprint


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        GenerationParams(max_new_tokens=1, batch_size=0)


def test_no_model_is_said(tmp_path: Path):
    from vlmkit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no vision-language processor"):
        HFBackend(directory=tmp_path, device="cpu", dtype="auto", workers=1)
