"""What the README says is so: its table is the generated one, its commands compose, what it names exists."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from vlmkit.cli.benchmarks import markdown
from vlmkit.cli.options import COMMANDS, GROUPS, options_table, settings
from vlmkit.config import conf_dir, options_of

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE_START, TABLE_END = "<!-- options:", "<!-- end of options -->"
FORMER = (
    "vlm_backbone.vlm_path",
    "vision_encoder_path",
    "llm_backbone_path",
    "_stage1_ckpt",
    "dataset.model_path",
    "use_projection",
    "type=",
    "vlm_backbone_id",
    "processor_type",
    "eval.processor_type",
    "tokenizer.model_path",
    "attn_implementation",
    "freeze_vision_encoder",
    "freeze_projection",
    "freeze_backbone",
    "data_sources",
    "data_root",
    "image_max_pixels",
    "video_max_pixels",
    "truncation_max_length",
    "statistic_name",
    "per_device_batch_size",
    "per_device_num_workers",
    "max_epochs",
    "max_steps",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_ratio",
    "enable_gradient_checkpointing",
    "enable_mixed_precision_training",
    "mixed_precision_dtype",
    "sharding_strategy",
    "eval.*",
    "--config",
    "--ckpt-path",
    "--resume-from",
    "--cfg-options",
)
"""Settings of the predecessor; each has its row."""


def written(text: str) -> str:
    """The README without the generated table."""
    return text[: text.index(TABLE_START)] + text[text.index(TABLE_END) :]


def commands() -> list[list[str]]:
    """Every vlmkit command of the README's shell blocks, line breaks joined."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("vlmkit-"):
                found.append(words)
    return found


def former_rows() -> list[tuple[str, str]]:
    """Left and right cell of each row of the predecessor's settings."""
    section = README.split("## Coming from FluxVLA", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ", 1) for line in section.splitlines() if line.startswith("| ")]
    return [(left, right) for left, right in rows if "`" in left]


def known_words() -> set[str]:
    """Every option path, the mappings on the way to it, and the groups."""
    paths = {one.name for one in settings()} | set(GROUPS) - {"eval"}
    return paths | {path.rsplit(".", depth)[0] for path in paths for depth in range(1, path.count(".") + 1)}


def test_the_table_is_the_generated_one():
    inside = README.split(TABLE_START, 1)[1].split("-->\n", 1)[1].split(TABLE_END, 1)[0]
    assert inside.strip() == options_table().strip(), "make tables writes it"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_compose(words):
    name = words[0].removeprefix("vlmkit-")
    assert name in COMMANDS
    flags = [word for word in words[1:] if word.startswith("-")]
    assert set(flags) <= {"-m", "--cfg", "--help"}
    overrides = [word for word in words[1:] if "=" in word]
    if "-m" in flags:  # a sweep: its first job
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    overrides = [re.sub(r"^benchmark_options", "++benchmark_options", word) for word in overrides]
    if any(word.startswith("init_from=") for word in overrides):
        overrides.append("data=llava")  # as the run that is named was trained
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose(name, overrides=overrides)


def test_there_are_commands_of_every_kind():
    assert {words[0] for words in commands()} == {f"vlmkit-{name}" for name in COMMANDS}


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_make_targets_exist(text):
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE))
    existing = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets
    assert targets <= existing


def test_no_option_is_named_that_does_not_exist():
    """In backquotes or shell blocks: `group.key`, `group=choice`, `key=value`."""
    text = written(README)
    for left, _ in former_rows():
        text = text.replace(left, "")
    roots = "|".join((*GROUPS, "save", "guard", "validate", "log", "benchmark_options"))
    known = known_words() | {f"benchmark_options.{name}" for name in options_of("eval")}
    benchmark = r"benchmark_options\.\w+"
    for path in re.findall(rf"`(?:\+*)((?:{roots})\.[\w.]+)", text):
        assert re.sub(benchmark, "benchmark_options.<name>", path).rstrip(".") in known, path
    for key, value in re.findall(r"`([\w.]+)=([^`\s]*)", text):
        assert re.sub(benchmark, "benchmark_options.<name>", key) in known, f"{key}={value}"
        if key in GROUPS:
            assert set(value.split("|")) <= set(options_of(key)), f"{key}={value}"


def test_the_predecessor_s_settings_each_have_a_row():
    left = " ".join(cell for cell, _ in former_rows())
    assert [word for word in FORMER if word not in left] == []
    assert all(right.strip(" |") for _, right in former_rows())


def test_the_predecessor_s_settings_lead_to_options_that_exist():
    known = known_words() | {"model.path"}
    named = {path for _, right in former_rows() for path in re.findall(r"`([a-z_]+\.[a-z_.]+)`", right)}
    assert len(named) > 25
    assert named <= known


def test_links_and_the_picture_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README + CONTRIBUTING):
        assert target.startswith("https://") or (REPOSITORY / target).exists(), target


def test_the_picture_is_drawn_for_light_and_dark_and_names_every_room():
    text = (REPOSITORY / "docs" / "rooms.svg").read_text(encoding="utf-8")
    words = " ".join(ElementTree.fromstring(text).itertext())
    rooms = {path.name for path in (REPOSITORY / "src" / "vlmkit").iterdir() if (path / "__init__.py").is_file()}
    assert [room for room in sorted(rooms) if room not in words] == []
    assert "prefers-color-scheme: dark" in text


def test_the_table_of_benchmarks_is_the_generated_one():
    inside = README.split("<!-- benchmarks:", 1)[1].split("-->\n", 1)[1].split("<!-- end of benchmarks -->", 1)[0]
    assert inside.strip() == markdown().strip(), "make tables writes it"
    for name in options_of("eval"):
        assert f"\n| {name} |" in README, name


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/install.md", "docs/parallel.md", "docs/runs.md", "bench/gpu.md"]
)
def test_the_first_screen_says_that_no_gpu_has_run_it_yet(page):
    first_screen = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()[:30]
    assert re.search(
        r"The CUDA paths have (not been run on a GPU yet|been written and reviewed, and not run)",
        "\n".join(first_screen),
    )
