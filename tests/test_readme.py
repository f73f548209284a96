"""The README's commands exist and say what it says of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from serving.settings import Settings, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def make_commands() -> list[str]:
    return sorted(set(re.findall(r"\bmake [a-z][^\n`#]*", README)))


@pytest.mark.parametrize("command", make_commands())
def test_every_make_command_has_a_target(command: str) -> None:
    done = subprocess.run(
        f"{command.strip()} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if command.startswith("make up"):
        line = done.stdout.split("serving up", 1)[1]
        overrides = re.findall(r"--set (\S+)", line)
        assert ("SET=" not in command) or overrides
        load(None, overrides)


def test_the_example_settings_are_settings(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    file = tmp_path / "serving.yaml"
    file.write_text(example)
    settings = load(file)
    assert settings != Settings()
    assert set(yaml.safe_load(example)) <= set(Settings.model_fields)


def test_the_variables_spell_settings() -> None:
    command = 'make up PORT=8123 ENGINES=2 FRONTS=3 MODEL=/m CONFIG=f.yaml SET="engine.dtype=float32 a.b=c" --dry-run'
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    words = done.stdout.split("serving up", 1)[1].split()
    assert [words[n + 1] for n, word in enumerate(words) if word == "--set"] == [
        *("http.port=8123", "engine.replicas=2", "http.fronts=3", "models.0.source=/m"),
        *("engine.dtype=float32", "a.b=c"),
    ]
    assert '"f.yaml"' in words


def test_the_python_example_is_python() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)h#][^)]*)\)", README):
        assert (ROOT / target).exists(), target
