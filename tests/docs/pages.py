"""The shell blocks of README and documentation, and a folder in which they can be run on the tiny model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlmkit.cli.options import COMMANDS

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(REPOSITORY) for path in DOCS.rglob("*.md")) + [Path("README.md")]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
QUICK = {
    "train": (
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "data.limit=24",
        "data.batch_size=4",
        "data.num_workers=0",
        "log.progress=false",
        "validate.max_samples=2",
        "validate.samples=1",
    ),
    "check": ("data.num_workers=0",),
    "inspect": ("data.num_workers=0",),
    "eval": ("max_samples_per_benchmark=4", "max_new_tokens=4", "progress=false"),
    "chat": ("max_new_tokens=4",),
}
"""Overrides that make a command small; one that the page gives itself stays as it is, but for the number of steps."""
FEWER = {
    "optuna": "hydra.sweeper.num_trials=2",
    "experiment=sweep_lr": "optim.lr=1e-3",
    "experiment=slurm": "optim.lr=1e-3,2e-3",
}
"""What makes a sweep small, by what its command has in it."""
KEPT = ("trainer.max_steps", "trainer.accelerator", "data.limit")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Path in the repository.
        number: On its page, from 1.
        language: As the fence names it.
        text: What is in it.
    """

    page: str
    number: int
    language: str
    text: str

    @property
    def needs(self) -> str:
        """What the block says it needs; empty where it runs anywhere."""
        match = re.search(r"^# needs (.*)$", self.text, flags=re.MULTILINE)
        return match[1] if match else ""

    @property
    def commands(self) -> list[list[str]]:
        """Its vlmkit commands, line breaks joined; those that srun or torchrun start too."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(re.split(r"\|\||&&", line)[0], comments=True)
            start = next((number for number, word in enumerate(words) if word.startswith("vlmkit-")), None)
            if "vlmkit.cli.train" in words:
                words[words.index("vlmkit.cli.train")], start = "vlmkit-train", words.index("vlmkit.cli.train")
            elif words[:1] == ["scripts/launch.sh"]:
                words[0], start = "vlmkit-train", 0
            if start is not None:
                found.append(words[start:])
        return found

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(*languages: str) -> list[Block]:
    """Every block of these languages."""
    found = []
    for page in PAGES:
        for number, match in enumerate(_FENCE.finditer((REPOSITORY / page).read_text(encoding="utf-8")), start=1):
            if match["language"] in languages:
                text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
                found.append(Block(page=str(page), number=number, language=match["language"], text=text))
    return found


def write_inputs(folder: Path) -> None:
    """The files that the pages name: manifests, tables, data files of other tools, a clip."""
    rng = np.random.default_rng(0)
    for place in ("data", "photos", "clips"):
        (folder / place).mkdir()
    rows = []
    for number in range(24):
        picture = Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        for name in (f"data/{number}.jpg", f"photos/{number}.jpg", f"{number}.jpg", "photo.jpg"):
            picture.save(folder / name)
        said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {number}."}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": said})
    for name in ("a.json", "train.json"):
        (folder / name).write_text(json.dumps(rows))
    for name in ("b.jsonl",):
        _lines(folder / name, [{**row, "id": f"b{row['id']}"} for row in rows])
    (folder / "table.csv").write_text(
        "number,ask,reply\n" + "".join(f"{number},What is it?,Number {number}.\n" for number in range(10))
    )
    chats = [
        {"role": "user", "content": [{"type": "image", "image": "0.jpg"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A picture."},
    ]
    _lines(folder / "chats.jsonl", [{"messages": chats}] * 3)
    _write_others(folder)
    _write_clip(folder / "clips" / "walk.mp4")
    clip = {"video": "clips/walk.mp4", "conversations": [
        {"from": "human", "value": "<video>\nWhat does she do?"}, {"from": "gpt", "value": "She walks to the door."}]}  # fmt: skip
    _lines(folder / "clips.jsonl", [{**clip, "id": str(number)} for number in range(8)])


def _write_others(folder: Path) -> None:
    """Data files as LLaMA-Factory and ms-swift have them."""
    turns = [{"role": "user", "content": "<image>Who is it?"}, {"role": "assistant", "content": "Nobody."}]
    alpaca = {"instruction": "Name it.", "input": "In one word.", "output": "Noise", "images": ["1.jpg"]}
    (folder / "llama_factory_alpaca.json").write_text(json.dumps([alpaca, {**alpaca, "images": ["2.jpg"]}]))
    sharegpt = {"messages": turns, "images": ["3.jpg"], "system": "Be brief."}
    (folder / "llama_factory_sharegpt.json").write_text(json.dumps([sharegpt]))
    old = {"query": "<image>And now?", "response": "Noise.", "history": [["Hello", "Hello."]], "images": ["4.jpg"]}
    _lines(folder / "swift.jsonl", [{"messages": turns, "images": ["5.jpg"]}])
    _lines(folder / "swift_old.jsonl", [old])
    boxes = [{"role": "user", "content": "<image>Where is <ref-object>?"}, {"role": "assistant", "content": "<bbox>"}]
    objects = {"ref": ["the dot"], "bbox": [[24, 16, 48, 32]]}
    _lines(folder / "grounding.jsonl", [{"messages": boxes, "images": ["6.jpg"], "objects": objects}])


def _write_clip(path: Path) -> None:
    import av

    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_commands(folder: Path) -> Path:
    """Scripts by the names of the console commands, which run this checkout on small numbers; their folder."""
    folder.mkdir()
    for name in COMMANDS:
        script = folder / f"vlmkit-{name}"
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom tests.docs.pages import small\nfrom vlmkit.cli.{name} import main\n"
            f"sys.argv[1:] = small({name!r}, sys.argv[1:])\nmain()\n"
        )
        script.chmod(0o755)
    return folder


def small(name: str, arguments: list[str]) -> list[str]:
    """The arguments of a command, made small."""
    if "--cfg" in arguments or "--help" in arguments:
        return arguments
    given = {argument.lstrip("+").split("=")[0] for argument in arguments}
    budget = "data.tokens_per_batch" in given
    more = [
        override
        for override in QUICK.get(name, ())
        if (key := override.split("=")[0]) not in given or key in KEPT
        if not (budget and key == "data.batch_size")
    ]
    return [*arguments, *more, *(word for part, word in FEWER.items() if any(part in one for one in arguments))]


def environment(commands: Path) -> dict[str, str]:
    """For a shell in which the pages' commands are those of `write_commands`."""
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]),
        "OMP_NUM_THREADS": "1",
    }


def run_block(block: Block, folder: Path, commands: Path) -> None:
    """Run a block as a script in a folder; paths like /data lead into it.

    Raises:
        AssertionError: a command in it failed.
    """
    text = re.sub(r"(?<=[= ])/(data|a)\b", rf"{folder}/data", block.text)
    command = [sys.executable, "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=environment(commands), capture_output=True, text=True, timeout=900,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}:\n{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
