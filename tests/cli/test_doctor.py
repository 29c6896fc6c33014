"""`vlmkit-doctor`: what it finds is so, what is missing is named with its remedy, nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from tests.training.conftest import run
from vlmkit.cli import doctoring
from vlmkit.cli.doctoring import disk, examine, extras, hub_access, patch_embedding_seconds, versions, video
from vlmkit.model import patch_embed


def messages(section) -> str:
    return "\n".join(f"{finding.mark}: {finding.message}" for finding in section.findings)


def test_the_command_tells_everything_and_leaves_nothing(tmp_path):
    told = run("doctor", "hub=false", cwd=tmp_path)
    for words in (f"torch {torch.__version__.split('+')[0]}", "CPUs", "attention on", "as the matrix product that vlmkit uses",
                  "a frame; data.video_reader=auto takes", "written and synced at", "not asked", "vlmkit can run here."):  # fmt: skip
        assert words in told
    assert list(tmp_path.iterdir()) == []


def test_for_machines(tmp_path):
    told = json.loads(run("doctor", "format=json", "measure=false", cwd=tmp_path))
    assert told["schema"] == "vlmkit.doctor/1"
    assert told["sound"] is True
    assert list(told["sections"]) == ["versions", "extras", "devices", "kernels", "video", "disk", "hub"]
    assert told["sections"]["devices"]["figures"]["cpus"] >= 1
    assert told["sections"]["disk"]["figures"]["runs"] == {
        "path": str(tmp_path), "free_bytes": pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("format=xml", "format=xml: choose one of text, json."),
        ("measure=1", "measure=1: wanted true or false."),
        ("directory=gone", "directory=gone: there is no such directory."),
        ("hubb=true", "Did you mean hub?"),
    ],
)
def test_wrong_turns(override, words, tmp_path):
    assert words in run("doctor", override, cwd=tmp_path, status=1)


def test_what_is_missing_or_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(doctoring, "PACKAGES", ("torch", "no-such-package"))
    section = versions()
    assert section.mark == "error"
    assert "error: not installed: no-such-package." in messages(section)
    real = doctoring.metadata.requires
    monkeypatch.setattr(doctoring, "PACKAGES", ("torch",))
    monkeypatch.setattr(doctoring.metadata, "requires", lambda name: ["torch<1"] if name == "vlmkit" else real(name))
    assert "is outside of what this release was tested with (<1). pip install 'torch<1'" in messages(versions())


def test_extras_say_what_they_are_for(monkeypatch):
    monkeypatch.setattr(doctoring, "OPTIONAL", {"json": ("js", "a"), "no_such_module": ("thing", "logger=thing")})
    section = extras()
    assert section.figures["installed"] == ["json"]
    assert "no_such_module is not installed. pip install 'vlmkit[thing]' for logger=thing" in messages(section)


def test_a_machine_without_a_reader_cannot_run(monkeypatch):
    from vlmkit.processing import video as reading

    monkeypatch.setattr(reading, "READERS", dict.fromkeys(reading.READERS, _absent))
    reading.choose_reader.cache_clear()
    try:
        section = video(measure=False)
    finally:
        reading.choose_reader.cache_clear()
    assert section.mark == "error"
    assert "no library that reads videos loads here: pip install decord, or av" in messages(section)


def _absent():
    raise ImportError("not here")


def test_a_directory_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert "nothing can be written to" in messages(disk(tmp_path, measure=True))


def test_a_hub_that_does_not_answer_is_told(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    section = hub_access(ask=True)
    assert section.figures["reachable"] is False
    assert "http://127.0.0.1:9 does not answer (ConnectError). Name models by local directories" in messages(section)


def test_both_ways_of_the_patch_embedding_are_timed(monkeypatch):
    embedded, convolved = [], []
    embed, convolve = patch_embed.embed_patches, torch.nn.Conv3d.forward
    monkeypatch.setattr(patch_embed, "embed_patches", lambda *given: embedded.append(embed(*given)) or embedded[-1])
    monkeypatch.setattr(
        torch.nn.Conv3d, "forward", lambda self, given: convolved.append(convolve(self, given)) or convolved[-1]
    )
    convolution, product = patch_embedding_seconds(torch.device("cpu"), torch.float32)
    assert len(embedded) == len(convolved) == 5
    torch.testing.assert_close(embedded[0], convolved[0].flatten(1), rtol=0, atol=1e-4)  # the same patches
    assert min(convolution, product) > 0


def test_an_unsound_machine_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(doctoring, "PACKAGES", ("no-such-package",))
    examination = examine(tmp_path, measure=False, hub=False)
    assert not examination.sound
    assert examination.to_text().endswith("vlmkit cannot run here: mend what is marked error above.")
