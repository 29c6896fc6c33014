"""What made a score: told, kept for scoring again, and unknown where nobody knows."""

from __future__ import annotations

import json

from vlmkit import __version__
from vlmkit.evaluation import provenance

ROWS = [
    {"id": "1", "prompt": "What?", "outcome": "right"},
    {"id": "2", "prompt": "Who?", "outcome": "unparsed"},
    {"id": "3", "prompt": "Why?", "outcome": "failed"},
]


def test_the_prompt_id_follows_words_and_cases():
    told = provenance.prompt_id(ROWS, protocol="lmms-eval")
    assert told.startswith("lmms-eval:")
    assert told == provenance.prompt_id([row | {"answer": "x"} for row in ROWS], protocol="lmms-eval")
    assert told != provenance.prompt_id([ROWS[0] | {"prompt": "What??"}, *ROWS[1:]], protocol="lmms-eval")
    assert told != provenance.prompt_id(ROWS[:2], protocol="lmms-eval")
    assert told.split(":")[1] == provenance.prompt_id(ROWS, protocol="vlmevalkit").split(":")[1]


def test_parse_failures_are_those_alone():
    told = provenance.scored_with(ROWS, protocol="x", preset="house")
    assert (told["parse_failures"], told["judge"], told["preset"]) == (0.3333, None, "house")
    assert told["parser"].startswith(f"{__version__}+")
    assert provenance.scored_with([], protocol="x", preset="house")["parse_failures"] == 0.0


def test_the_rules_version_follows_their_source(tmp_path, monkeypatch):
    before = provenance.parser_version()
    for folder in ("scorers", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "answers.py").write_text("x = 1\n")
    (tmp_path / "scorers" / "anls.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_HERE", tmp_path)
    versions = [before]
    for line in ("x = 1\n", "x = 2\n"):
        (tmp_path / "scorers" / "anls.py").write_text(line)
        provenance.parser_version.cache_clear()
        versions.append(provenance.parser_version())
    provenance.parser_version.cache_clear()
    assert len(set(versions)) == 3


def test_what_answered_is_kept_and_unknown_where_it_is_not(tmp_path):
    assert provenance.kept_asked(tmp_path) == provenance.UNKNOWN
    asked = {"backend": "hf", "template": "abc", "pixel_limits": {"video_fps": 2.0}, "decoding": {"strategy": "greedy"}}
    provenance.keep_asked(tmp_path / "gqa", asked)
    assert provenance.kept_asked(tmp_path / "gqa") == asked
    assert json.loads((tmp_path / "gqa" / "asked.json").read_text())["schema"] == "vlmkit.asked/1"
    (tmp_path / "gqa" / "asked.json").write_text('{"sch')
    assert provenance.kept_asked(tmp_path / "gqa") == provenance.UNKNOWN
