"""MVBench (Li et al., 2024): 20 tasks of what happens in a video, multiple choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vlmkit.evaluation.benchmark import Case
from vlmkit.evaluation.benchmarks.asking import ask
from vlmkit.evaluation.benchmarks.judged import JudgedLetters
from vlmkit.evaluation.benchmarks.videos import VideoTree
from vlmkit.evaluation.loading import DataPlace
from vlmkit.evaluation.rows import Layout, Row, lettered
from vlmkit.evaluation.score import Score
from vlmkit.evaluation.scorers.multiple_choice import mean_over_groups, mvbench_letter, score_inferred_choice

FOLDERS = {
    "action_sequence": "star/",
    "action_prediction": "star/",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/",
    "unexpected_action": "FunQA_test/",
    "object_existence": "clevrer/",
    "object_interaction": "star/",
    "object_shuffle": "perception/",
    "moving_direction": "clevrer/",
    "action_localization": "sta/",
    "scene_transition": "scene_qa/",
    "action_count": "perception/",
    "moving_count": "clevrer/",
    "moving_attribute": "clevrer/",
    "state_change": "perception/",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/",
    "egocentric_navigation": "vlnqa/",
    "episodic_reasoning": "tvqa/",
    "counterfactual_inference": "clevrer/",
}
"""The tasks, which are the configurations of the data, and the folder of each one's videos."""
_SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of objects, "
    "and the action and pose of persons. Based on your observations, select the best option that accurately addresses the "
    "question.\n"
)
_BEST = "Only give the best option."


class MVBench(JudgedLetters):
    """All 20 tasks (the split is called train), or those that `config` names. Videos lie anywhere under `data_root`.

    The headline figure is the mean of the tasks' means; the mean over questions stands beside it. `vlmkit`, the default,
    asks as lmms-eval does and infers the letter from letter or option text; an empty answer is unparsed. lmms-eval leaves
    empty answers out of its means. `vlmevalkit` calls an empty answer right, as shipped; its opening of the answer,
    `Best option:(`, ends the question, since the template ends with the turn.

    Clips are shown whole: the revision `video` of the data has them cut; the time bounds of other copies are not applied.

    Args:
        protocol: vlmkit, lmms-eval or vlmevalkit.
        prompt_suffix: Instead of the instruction after the options; None: the protocol's.
        hub_id: Dataset on the hub.
        config: `all`, a task, or a list of tasks.
        split: Its split.
        data_root: Local Parquet, JSON, TSV or saved files, with the videos; None: the hub, which has no loose videos.
        revision: On the hub.
    """

    name = "mvbench"
    metric = "mean_over_tasks"
    protocols: ClassVar[tuple[str, ...]] = ("vlmkit", "lmms-eval", "vlmevalkit")
    columns: ClassVar[Mapping[Layout, tuple[str, ...]]] = {
        "hub": ("video", "question", "candidates", "answer"),
        "tsv": ("index", "video", "question", "candidates", "answer", "task_type"),
    }
    optional: ClassVar[Mapping[Layout, tuple[str, ...]]] = {"tsv": ("prefix",)}
    paper: ClassVar[Mapping[str, Any]] = {"protocol": "vlmevalkit"}
    tsv_name = "MVBench"
    configs: ClassVar[tuple[str, ...]] = tuple(FOLDERS)

    def __init__(
        self,
        *,
        protocol: str,
        prompt_suffix: str | None,
        hub_id: str,
        config: str | Sequence[str] | None,
        split: str,
        data_root: str | Path | None,
        revision: str | None,
    ) -> None:
        super().__init__(
            protocol=protocol,
            prompt_suffix=prompt_suffix,
            hub_id=hub_id,
            config=config,
            split=split,
            data_root=data_root,
        )
        self.revision = revision

    def place(self) -> DataPlace:
        """With the revision."""
        return replace(super().place(), revision=self.revision)

    @cached_property
    def _videos(self) -> VideoTree:
        folder = self.place().folder
        return VideoTree(folder if folder.is_dir() else folder.parent)

    def identifier(self, row: Row) -> str:
        """Of the hub's rows, which have no name: the task and the place in it."""
        return f"{row.config}/{row.number}" if row.layout == "hub" else super().identifier(row)

    def read(self, row: Row, identifier: str) -> Case | None:
        """A question about a clip; None for tasks of a TSV that are not asked for."""
        task = row.config or row.text("task_type").lower().replace(" ", "_").replace("-", "_")
        if task not in self._configs:
            return None
        options = lettered(row.texts("candidates"))
        letters = [letter for letter, text in options.items() if text == row.text("answer")]
        if not letters:
            raise row.wrong("answer", f"one of its {len(options)} candidates")
        if self.data_root is None:
            raise row.wrong("video", "a video, and rows of the hub name files only: download the data, set data_root")
        name = row.text("video")
        video = self._videos.find(row, name, likely=row.optional("prefix") or FOLDERS[task])
        system = _SYSTEM if self.protocol == "vlmevalkit" else ""
        return ask(
            identifier,
            [video, self.put(row.text("question"), options)],
            letters[0],
            origin=row.origin,
            category=task,
            options=options,
            cluster=name,
            system=system,
        )

    def put(self, question: str, options: Mapping[str, str]) -> str:
        """The question as the protocol puts it."""
        listed = "\n".join(f"({letter}) {text}" for letter, text in options.items())
        if self.protocol == "vlmevalkit":
            ending = f"\n{_BEST}Best option:(" if self.prompt_suffix is None else self.prompt_suffix
            return f"Question: {question}\nOptions:\n{listed}{ending}"
        ending = f"{_BEST}\n" if self.prompt_suffix is None else self.prompt_suffix
        return f"Question:{question}\nOption:\n{listed}\n{ending}"

    def grade(self, case: Case, prediction: str) -> Score:
        """By letter, or the text of an option."""
        if self.protocol == "vlmkit":
            return score_inferred_choice(prediction=prediction, answer=case.expected, options=case.options)
        return mvbench_letter(prediction=prediction, answer=case.expected, options=case.options, protocol=self.rule)

    def figures(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of the tasks' means, in percent."""
        counted = [one for one in records if not self.lmms_eval or str(one.get("answer") or "").strip()]
        if not counted:
            return {"mean_over_tasks": 0.0}
        tasks = [str(record.get("category", "")) for record in counted]
        return {"mean_over_tasks": 100 * mean_over_groups([float(record["score"]) for record in counted], tasks)}
