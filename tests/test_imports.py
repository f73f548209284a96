"""Which way the imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "serving"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# A layer may import itself and what stands below it.
ORDER = ["root", "api", "scheduler", "pool", "engine", "base"]
LAYERS = {
    "root": {"__main__", "app", "deployment", "launch", "cluster", "admin"},
    "base": {"core", "errors", "settings", "__init__"},
}
VENDORS = {
    "ray": {"deployment.py", "cluster.py", "launch.py"},
    "vllm": {"engine/vllm.py", "engine/vllm_scheduler.py", "engine/simulated.py"},
    "torch": {"engine/simulated.py", "engine/xgrammar_check.py"},
    "transformers": {"engine/xgrammar_check.py"},
    "xgrammar": {"engine/xgrammar_check.py"},
    "prometheus_client": {"metrics/front.py", "metrics/engine.py", "admin.py"},
}


def layer(path: Path) -> str:
    if len(path.parts) > 1:
        return path.parts[0]
    return next(name for name, stems in LAYERS.items() if path.stem in stems)


def tree(path: Path) -> ast.AST:
    return ast.parse((ROOT / path).read_text())


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[Path]:
    for name in imports(path):
        if name.startswith("serving."):
            relative = Path(*name.split(".")[1:])
            for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
                if (ROOT / candidate).is_file() and candidate != path:
                    yield candidate


@pytest.mark.parametrize("path", FILES, ids=str)
def test_arrows_point_down(path: Path) -> None:
    mine = layer(path)
    for other in own_imports(path):
        theirs = layer(other)
        if mine == "models":
            assert theirs in {"models", "base"}, f"{path} imports {other}"
        elif mine == "metrics":
            assert theirs == "metrics" or other.as_posix() == "core.py", f"{path} imports {other}"
        elif theirs == "models":
            assert mine in {"root", "api"}, f"{path} imports {other}"
        elif theirs == "metrics":
            assert mine == "root", f"{path} imports {other}"
        else:
            assert ORDER.index(mine) <= ORDER.index(theirs), f"{path} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_vendors_stay_where_they_belong(path: Path) -> None:
    for name in imports(path):
        allowed = VENDORS.get(name.split(".")[0])
        assert allowed is None or path.as_posix() in allowed, f"{path} imports {name}"


def test_the_walk_sees_every_way_to_import() -> None:
    assert Path("settings.py") in own_imports(Path("api/completion.py"))  # from serving.settings import …
    assert Path("api/openai.py") in own_imports(Path("api/completion.py"))  # from serving.api import …
    assert Path("errors.py") in own_imports(Path("api/failures.py"))  # from serving import …
    assert Path("launch.py") in own_imports(Path("__main__.py"))  # inside a function
    for path in FILES:
        relative = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]
        assert not relative, f"{path}: imports name the whole path"


# What stands outside the dialects: readiness, which has no dialect, and a bound that is not a status.
STATUSES = {"api/openai.py": None, "api/huggingface.py": None, "api/routes.py": {503}, "settings.py": {500}}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_statuses_are_the_dialects_business(path: Path) -> None:
    numbers = {
        node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and type(node.value) is int
    }
    allowed = STATUSES.get(path.as_posix(), set())
    assert allowed is None or {number for number in numbers if 400 <= number < 600} <= allowed


def test_no_cycles() -> None:
    graph = {path: set(own_imports(path)) for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " → ".join(map(str, (*trail, path)))
        if path not in done:
            for other in graph[path]:
                visit(other, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def test_a_front_loads_neither_vllm_nor_torch() -> None:
    code = (
        "import sys, serving.app; print([m for m in ('vllm', 'torch', 'transformers', 'xgrammar') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
