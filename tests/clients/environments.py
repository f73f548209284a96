"""Makes the clients' environments under `.venv-clients/`: each once, from its pinned list, two at a time.

`python -m tests.clients.environments` makes them all; a test asks for the one that it needs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = ROOT / "requirements" / "clients"
PLACE = ROOT / ".venv-clients"
NODE = "node"
AT_A_TIME = 2
STAMP = ".installed"  # holds the checksum of the list, and is written last


def names() -> list[str]:
    # npm takes longest: what is started first ends first.
    return [NODE, *sorted(path.stem for path in LISTS.glob("*.txt"))]


def has_node() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def make(name: str) -> Path:
    """The environment's folder, with everything on its list in it."""
    place, listed = PLACE / name, LISTS / ("node/package.json" if name == NODE else f"{name}.txt")
    checksum = hashlib.sha256(listed.read_bytes()).hexdigest()
    stamp = place / STAMP
    if stamp.is_file() and stamp.read_text() == checksum:
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if name == NODE:
        shutil.copy(listed, place)
        _run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", cwd=place)
    else:
        # This environment's pip serves them all, and only what a client imports is compiled: both halve the time.
        _run(sys.executable, "-m", "venv", "--without-pip", str(place))
        pip = (sys.executable, "-m", "pip", "--python", str(python(place)), "--disable-pip-version-check", "--quiet")
        _run(*pip, "install", "--no-deps", "--no-compile", "-r", str(listed))
    stamp.write_text(checksum)
    return place


def make_all(wanted: Iterable[str]) -> dict[str, float]:
    """Makes those that are not there yet, and says how many seconds each took."""
    asked = set(wanted)
    wanted = [name for name in names() if name in asked and (name != NODE or has_node())]

    def timed(name: str) -> float:
        start = time.monotonic()
        make(name)
        return time.monotonic() - start

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return dict(zip(wanted, pool.map(timed, wanted), strict=True))


def python(place: Path) -> Path:
    return place / "bin" / "python"


def _run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    for name, seconds in make_all(names()).items():
        print(f"{name:14} {seconds:5.1f} s")
