"""Video-MME (Fu et al., 2024): multiple choice about short, medium and long videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vlmkit.conversation import VideoPart
from vlmkit.errors import DataError
from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import LETTER_DIRECTLY, ask
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.rows import Layout, Row
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import score_extracted_choice, score_inferred_choice

ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi")
_SELECT = (
    "Select the best answer to the following multiple-choice question based on the video{also}. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\n"
)
_OPTION = re.compile(r"([A-D])[.)]\s*(.*)", re.DOTALL)


class VideoMME(JudgedLetters):
    """The test split without subtitles. Videos lie under `data_root`, in folders named data, video or videos.

    Frames are sampled as the checkpoint's processor says; published numbers name their number of frames.
    """

    name = "videomme"
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("videoID", "question_id", "question", "options", "answer", "duration", "domain", "sub_category",
                "task_type"),
    }  # fmt: skip
    id_column = "question_id"

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question about a video."""
        told = row.texts("options")
        options = {found[1]: found[2].strip() for text in told if (found := _OPTION.match(text.strip()))}
        if row.text("answer") not in options:
            raise row.wrong("answer", f"one of {', '.join(options) or 'A to D'}")
        video = find_video(row, row.text("videoID"))
        return ask(
            identifier,
            [VideoPart(video), self.put(row.text("question"), told)],
            row.text("answer"),
            origin=row.origin,
            category=row.text("duration"),
            options=options,
            labels={name: row.text(name) for name in ("domain", "sub_category", "task_type")},
            cluster=row.text("videoID"),
        )

    def put(self, question: str, options: list[str]) -> str:
        """The question as the protocol puts it."""
        listed = "\n".join(options)
        if self.lmms_eval:
            text = f"{_SELECT.format(also=' and the subtitles')}{question}\n{listed}\n"
            return text + self.instruction(lmms_eval=LETTER_DIRECTLY)
        text = f"\nThese are the frames of a video. {_SELECT.format(also='')}Question: {question}\n{listed}\n"
        return text + self.instruction(lmms_eval="", vlmevalkit="Answer: ")

    def grade(self, case: Case, prediction: str) -> Score:
        """By letter, or the text of an option."""
        if self.lmms_eval:
            return score_extracted_choice(prediction=prediction, answer=case.expected)
        return score_inferred_choice(prediction=prediction, answer=case.expected, options=case.options)


def find_video(row: Row, name: str) -> Path:
    """The file of a video, with or without its ending in the name, near the file of the row.

    Raises:
        DataError: it is not there, or the rows come from the hub, which has no loose videos.
    """
    if row.root is None:
        raise DataError(
            f"video {name!r} cannot be had from the hub by the row. Download the data and set data_root.",
            reason="missing_media",
            origin=row.origin,
        )
    for base in (row.root, row.root.parent):
        for folder in (base, *(base / one for one in ("data", "video", "videos"))):
            for ending in ("", *ENDINGS):
                path = folder / f"{name}{ending}"
                if path.is_file() and path.resolve().is_relative_to(base.resolve()):
                    return path
    raise DataError(
        f"video {name!r} is not under {row.root} (nor in data, video or videos there or beside it). Put it there.",
        reason="missing_media",
        origin=row.origin,
    )
