"""Tool formats by name: the built-in ones, and those that installed packages offer.

A package offers a `Format` object under the entry point group `serving.tool_formats`.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib.metadata import entry_points

from serving.api.tools.base import Format
from serving.api.tools.generic import Generic
from serving.api.tools.json_tags import JsonTags
from serving.api.tools.llama import Llama3Json
from serving.api.tools.mistral import Mistral
from serving.api.tools.pythonic import Pythonic

GROUP = "serving.tool_formats"

_BUILT_IN: dict[str, Format] = {
    format.name: format for format in (JsonTags(), Llama3Json(), Mistral(), Pythonic(), Generic())
}
_BUILT_IN["hermes"] = _BUILT_IN["json_tags"]


@lru_cache
def find(name: str) -> Format:
    """The format of this name. Raises `ValueError` that lists the names there are."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    outside = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in outside:
        found: Format = outside[name].load()
        return found
    known = sorted(_BUILT_IN.keys() | outside.keys())
    nearest = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"no tool format {name!r} among {', '.join(known)}{hint}")
