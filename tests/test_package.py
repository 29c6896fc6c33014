"""The wheel: every yaml is in it, and the commands run out of it, from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlmkit import config
from vlmkit.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """What the wheel would put into site-packages."""
    pytest.importorskip("build", reason="the build package is not installed: pip install -e '.[dev]'")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    site = folder / "site"
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(site)
    return site


def python(*arguments: str, site: Path, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_yaml_and_the_type_marker(unpacked):
    yamls = {path.relative_to(REPOSITORY / "conf"): path for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert len(yamls) > 20
    for name, path in yamls.items():
        assert (unpacked / "vlmkit" / "conf" / name).read_bytes() == path.read_bytes()
    assert (unpacked / "vlmkit" / "py.typed").is_file()
    assert (unpacked / "hydra_plugins" / "vlmkit_sweeps" / "plugins.py").is_file(), "where Hydra looks for them"
    assets = list((REPOSITORY / "src" / "vlmkit" / "pages" / "assets").iterdir())
    assert len(assets) > 10
    for path in assets:
        assert (unpacked / "vlmkit" / "pages" / "assets" / path.name).read_bytes() == path.read_bytes()


def test_the_commands_use_the_wheel_s_configuration_from_any_directory(unpacked, tmp_path):
    where = python("-c", "from vlmkit.config import conf_dir; print(conf_dir())", site=unpacked, cwd=tmp_path)
    assert Path(where.strip()) == unpacked / "vlmkit" / "conf"
    for command in ("train", "assemble", "eval"):
        module = ("-m", f"vlmkit.cli.{command}", "--cfg", "job")
        assert python(*module, site=unpacked, cwd=tmp_path) == python(*module, site=REPOSITORY / "src", cwd=tmp_path)


def test_every_console_script_is_a_main(unpacked):
    entries = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text().splitlines()
    scripts = dict(line.split(" = ") for line in entries if " = " in line)
    assert set(scripts) >= {"vlmkit-train", "vlmkit-assemble", "vlmkit-eval"}
    for name, target in scripts.items():
        assert target == f"vlmkit.cli.{name.removeprefix('vlmkit-')}:main"
        path = unpacked / "vlmkit" / "cli" / f"{name.removeprefix('vlmkit-')}.py"
        assert "\ndef main() -> None:\n" in path.read_text()


def test_the_checkout_s_configuration_is_found():
    assert config.conf_dir() == REPOSITORY / "conf"


def test_an_installation_without_configuration_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "src" / "vlmkit" / "config.py"))
    with pytest.raises(ConfigError) as caught:
        config.conf_dir()
    assert str(tmp_path / "src" / "vlmkit" / "conf") in str(caught.value)
    assert f"nor {tmp_path / 'conf'} holds train.yaml" in str(caught.value)
