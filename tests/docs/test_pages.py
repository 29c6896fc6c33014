"""The documentation: its blocks run on the tiny model or say what they need, it builds, and what it names exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.docs.pages import DOCS, REPOSITORY, blocks, run_block, write_commands, write_inputs
from vlmkit.cli.options import COMMANDS, GROUPS, settings
from vlmkit.config import conf_dir, options_of

sys.path.append(str(REPOSITORY / "scripts"))

SHELL = blocks("bash")
RUN = [
    block for block in blocks("bash", "python") if not block.needs and (block.commands or block.language == "python")
]
"""In the order of each page: what a block writes, the next may read."""
RUN_PAGES = sorted({block.page for block in RUN})
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
WRITTEN = [path for path in sorted(DOCS.rglob("*.md")) if path.name not in ("errors.md",)]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with the files that the pages name, a finished run, and two evaluations; and the commands."""
    folder = tmp_path_factory.mktemp("pages")
    write_inputs(folder)
    commands = write_commands(folder / "bin")
    setting_up = blocks("bash")[0].__class__(
        page="tests", number=0, language="bash",
        text="vlmkit-train run_dir=runs/full\ncp -r runs/full runs/s2\n"
        "for one in a b; do vlmkit-eval ckpt=runs/full output_dir=runs/$one/eval; done\n",
    )  # fmt: skip
    run_block(setting_up, folder, commands)
    return folder, commands


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_commands_of_a_page_run_one_after_the_other(place, page):
    for block in (one for one in RUN if one.page == page):
        run_block(block, *place)


def test_pages_of_every_kind_are_run():
    assert {"README.md", "docs/first_run.md", "docs/migration.md", "docs/recipes/video.md"} <= set(RUN_PAGES)
    assert len(RUN) > 20


@pytest.mark.parametrize("block", [block for block in SHELL if block.needs], ids=str)
def test_the_commands_of_a_block_that_needs_more_compose(block):
    for words in block.commands:
        name = words[0].removeprefix("vlmkit-")
        assert name in COMMANDS, words
        overrides = [word for word in words[1:] if "=" in word and not word.startswith("--")]
        overrides = [re.sub(r"^benchmark_options", "++benchmark_options", word) for word in overrides]
        if any(word.startswith("init_from=") for word in overrides) and name in ("train", "check", "inspect"):
            added = {"data": "llava", "model": "vision2b_llm0_6b"}  # as the run that is named was composed
            given = {word.split("=")[0] for word in overrides}
            overrides += [f"{group}={option}" for group, option in added.items() if group not in given]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            compose(name, overrides=overrides)


def test_a_block_is_run_or_says_what_it_needs():
    """A shell block without a vlmkit command is make, or shown as text."""
    for block in SHELL:
        assert block.needs or block.commands or re.match(r"(make|source) ", block.text), block


def test_a_wrong_command_in_a_page_is_found():
    block = SHELL[0].__class__(
        page="x", number=1, language="bash", text="# needs a GPU\nvlmkit-train data.sorces=[a] \\\n  x=1 || exit\n"
    )
    assert block.needs == "a GPU"
    assert block.commands == [["vlmkit-train", "data.sorces=[a]", "x=1"]]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(DOCS)))
def test_no_option_is_named_that_does_not_exist(path):
    text = path.read_text(encoding="utf-8")
    known = {one.name for one in settings()} | set(GROUPS) - {"eval"}
    known |= {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    known |= {"model.path"}
    roots = "|".join((*GROUPS, "save", "guard", "validate", "log", "check", "inspect", "fields"))
    for key in re.findall(rf"`(?:\+*)((?:{roots})\.[a-z0-9_.]+)", text):
        if not key.endswith((".jsonl", ".json", ".png")):
            assert key.rstrip(".") in known, key
    for key, value in re.findall(r"`([a-z_.]+)=([^`\s]*)", text):
        assert key in known, f"{key}={value}"
        if key in GROUPS and re.fullmatch(r"[a-z0-9_]+", value):
            assert value in options_of(key), f"{key}={value}"


def test_every_dependency_has_its_licence_told():
    told = (DOCS / "licences.md").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    for line in [*project["dependencies"], *(line for needs in extras.values() for line in needs)]:
        name = re.match(r"[\w-]+", line)[0]
        assert re.search(rf"\b{name}\b", told), name
    assert [name for name in extras if f"`{name}`" not in told] == []


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_drawn_for_light_and_dark_and_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert len(root.find("{http://www.w3.org/2000/svg}title").text) > 40
    width, height = map(float, root.get("viewBox").split()[2:])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, wide, high = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width, box.attrib
        assert 0 <= y <= y + high <= height, box.attrib


def test_every_concept_has_its_picture():
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\(pictures/(\w+)\.svg\)", text))
    assert shown == {path.stem for path in PICTURES}
    assert len(shown) == 9
    for concept in re.split(r"^## ", text, flags=re.MULTILINE)[1:-1]:
        assert len(re.findall(r"^!\[.+\]\(pictures/", concept, flags=re.MULTILINE)) == 1, concept.split("\n", 1)[0]


def test_every_page_stands_in_the_navigation_once():
    import yaml

    def pages(entries):
        for entry in entries:
            (found,) = entry.values()
            yield from pages(found) if isinstance(found, list) else [found]

    shown = list(pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(shown) == len(set(shown))
    assert {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} <= set(shown)


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_there_are_the_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["assembly", "quickstart", "reading_results", "your_own_data"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_in_git_has_no_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        assert cell.get("outputs", []) == [], "clear the outputs before you commit"
        assert cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """In a process of its own: the kernel's client warns of what is none of ours."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'vlmkit[docs]'")
    code = f"import notebooks, pathlib; notebooks.run(pathlib.Path({str(path)!r}), pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY / "scripts",
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_shell_command_that_fails_in_a_notebook_is_noticed():
    """IPython goes on where `!false` fails; a check stands behind each."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'vlmkit[docs]'")
    import notebooks

    new = nbformat.v4
    cells = [
        new.new_code_cell("!false"),
        new.new_code_cell("!false", metadata={"tags": ["exits-1"]}),
        new.new_code_cell("1"),
    ]
    checked = notebooks.with_checks(new.new_notebook(cells=cells)).cells
    assert [cell.source.split(",")[0] for cell in checked] == [
        "!false", "assert _exit_code == 0", "!false", "assert _exit_code == 1", "1",
    ]  # fmt: skip


def test_outputs_become_text_and_pictures():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'vlmkit[docs]'")
    import notebooks

    new = nbformat.v4
    outputs = [
        new.new_output("stream", text="\x1b[31mred\x1b[0m in /tmp/x/runs\n"),
        new.new_output("stream", name="stderr", text=" 10%|#   | 1/10\rdone\n"),
        new.new_output("display_data", data={"image/png": "UE5H", "text/plain": "<Figure>"}),
    ]
    cells = [new.new_markdown_cell("# T"), new.new_code_cell("!a\n!b", outputs=outputs)]
    page, pictures = notebooks.as_markdown(new.new_notebook(cells=cells), "n", Path("/tmp/x"))
    assert page == "# T\n\n```bash\na\nb\n```\n\n```text\nred in runs\ndone\n```\n\n![output](n-1.png)\n"
    assert pictures == {"n-1.png": b"PNG"}


# --- the site ---------------------------------------------------------------------------------------------------------


def test_a_section_is_taken_as_it_stands_and_its_links_led_to_the_pages():
    pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'vlmkit[docs]'")
    import docs_hooks

    runs = docs_hooks.with_sections('<!-- include README.md "Runs" -->', "runs.md")
    assert "](parallel.md)" in runs
    assert "](gpu.md)" in runs
    assert "[docs/sweeps.md]" not in runs
    assert "[Sweeps](sweeps.md)" in runs
    assert "## Evaluation" not in runs
    assert "### When something fails" in runs
    assert "](../gpu.md)" in docs_hooks.with_sections('<!-- include README.md "Runs" -->', "recipes/x.md")
    with pytest.raises(LookupError, match=r"README\.md has no heading 'Nothing'"):
        docs_hooks.section("README.md", "Nothing")


def test_every_section_of_the_readme_is_on_some_page():
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    shown = set(re.findall(r'<!-- include README.md "([^"]+)" -->', text)) | {"Options"}  # a page that is made
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.*)$", readme, flags=re.MULTILINE)) - shown == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'vlmkit[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "options.html", "errors.html", "gpu.html", "notebooks/quickstart.html"} <= pages
    text = (tmp_path / "site" / "data.html").read_text(encoding="utf-8")
    assert "include README.md" not in text
    assert "A manifest is a JSON array" in text
    assert not re.search(r'(src|href)="https?://[^"]*(cdn|fonts|unpkg)', text), (
        "a page fetches something from elsewhere"
    )
