"""Video-MME (Fu et al., 2024): multiple choice about short, medium and long videos, with or without subtitles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vlmkit.conversation import VideoPart
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import LETTER_DIRECTLY, ask
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.benchmarks.videos import find_beside, find_video, read_subtitles
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import score_extracted_choice, score_inferred_choice, videomme_letter

_SELECT = (
    "Select the best answer to the following multiple-choice question based on the video{also}. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\n"
)
_OPTION = re.compile(r"([A-D])[.)]\s*(.*)", re.DOTALL)
_TABLES = ("domain", "sub_category", "task_type")


class VideoMME(JudgedLetters):
    """The test split. Videos lie under `data_root`, in folders named data, video or videos, subtitles in subtitle.

    Frames are sampled as the checkpoint's processor says; published numbers name their number of frames. `vlmkit`, the
    default, asks as VLMEvalKit does and infers the letter from letter or option text. `vlmevalkit` takes the first A, B,
    C or D anywhere, as shipped; lmms-eval has a rule of its own.

    Args:
        protocol: vlmkit, lmms-eval or vlmevalkit.
        prompt_suffix: Instead of the protocol's instruction after the options; None: the protocol's.
        hub_id: Dataset on the hub.
        config: Its configuration.
        split: Its split.
        data_root: Local data, with the videos; None: the hub, which has no loose videos.
        subtitles: Whether the subtitles stand in the question: all of them, not only those of the sampled frames.
    """

    name = "videomme"
    protocols: ClassVar[tuple[str, ...]] = ("vlmkit", "lmms-eval", "vlmevalkit")
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("videoID", "question_id", "question", "options", "answer", "duration", *_TABLES),
        "tsv": ("index", "video", "question", "candidates", "answer", "duration", *_TABLES),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("video_path", "subtitle_path")}
    paper: ClassVar[Mapping[str, Any]] = {"protocol": "vlmevalkit"}
    tsv_name = "Video-MME"
    asked_by: ClassVar[tuple[str, ...]] = ("subtitles",)
    id_column = "question_id"

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | None,
        split: str,
        data_root: str | Path | None,
        subtitles: bool,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        self.subtitles = subtitles

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question about a video."""
        tsv = row.layout == "tsv"
        told = row.texts("candidates" if tsv else "options")
        options = {found[1]: found[2].strip() for text in told if (found := _OPTION.match(text.strip()))}
        if row.text("answer") not in options:
            raise row.wrong("answer", f"one of {', '.join(options) or 'A to D'}")
        name = row.text("video" if tsv else "videoID")
        return ask(
            identifier,
            [VideoPart(find_video(row, name)), self.put(row.text("question"), told, self._said(row, name))],
            row.text("answer"),
            origin=row.origin,
            category=row.text("duration"),
            options=options,
            labels={name: row.text(name) for name in _TABLES},
            cluster=name,
        )

    def _said(self, row: Row, name: str) -> str:
        """The subtitles of a video; "" where there are none, or none are wanted."""
        if not self.subtitles:
            return ""
        found = find_beside(row, name, folders=("subtitle", "subtitles"), endings=(".srt",))
        return read_subtitles(found) if found else ""

    def put(self, question: str, options: list[str], said: str) -> str:
        """The question as the protocol puts it."""
        listed = "\n".join(options)
        if self.lmms_eval:
            opening = "This video's subtitles are listed below: \n" + (said or "No subtitles available") + "\n"
            text = (opening if self.subtitles else "") + _SELECT.format(also=" and the subtitles")
            ending = "The best answer is:" if self.subtitles else LETTER_DIRECTLY
            return f"{text}{question}\n{listed}\n" + self.instruction(lmms_eval=ending)
        heard = f"This video's subtitles are listed below:\n{said}\n" if self.subtitles else ""
        text = f"\nThese are the frames of a video. {heard}{_SELECT.format(also='')}Question: {question}\n{listed}\n"
        return text + self.instruction(lmms_eval="", vlmevalkit="Answer: ")

    def grade(self, case: Case, prediction: str) -> Score:
        """By letter, or the text of an option."""
        if self.lmms_eval:
            return score_extracted_choice(prediction=prediction, answer=case.expected)
        if self.protocol == "vlmevalkit":
            return videomme_letter(prediction=prediction, answer=case.expected, options=case.options)
        return score_inferred_choice(prediction=prediction, answer=case.expected, options=case.options)
