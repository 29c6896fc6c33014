"""The README's table of options is the generated one, and names what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def commands():
    """Every vlmkit command in the README's shell blocks, line breaks joined."""
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("vlmkit-"):
                yield words


def test_the_table_is_the_generated_one():
    from vlmkit.cli.options import options_table

    inside = README.split("<!-- options:", 1)[1].split("-->\n", 1)[1].split("<!-- end of options -->", 1)[0]
    assert inside.strip() == options_table().strip(), (
        "run: python -m vlmkit.cli.options, and put its output into the README"
    )


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_in_the_readme_compose(words):
    from hydra import compose, initialize_config_dir

    from vlmkit.config import conf_dir

    overrides = [word for word in words[1:] if "=" in word]
    overrides = [word.split(",")[0] if word.startswith("optim.lr=") else word for word in overrides]
    overrides = [re.sub(r"^benchmark_options", "++benchmark_options", word) for word in overrides]
    if any(word.startswith("init_from=") for word in overrides):
        overrides.append("data=llava")  # as the run that is named was trained
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose(words[0].removeprefix("vlmkit-"), overrides=overrides)


def test_make_targets_in_the_readme_exist():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in set(
        re.findall(
            r"(?:`|^)make ([a-z-]+)",
            README + (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(),
            flags=re.MULTILINE,
        )
    ):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
