from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from serving.api.tools import registry
from serving.api.tools.generic import Generic

OUTSIDE_FORMAT = Generic()
OUTSIDE = EntryPoint("outside", f"{__name__}:OUTSIDE_FORMAT", registry.GROUP)


def test_built_in_formats_are_found_by_name() -> None:
    for name in ("json_tags", "llama3_json", "mistral", "pythonic", "generic"):
        assert registry.find(name).name == name
    assert registry.find("hermes") is registry.find("json_tags")


def test_packages_bring_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [OUTSIDE] if group == registry.GROUP else [])
    assert registry.find("outside") is OUTSIDE_FORMAT
    with pytest.raises(ValueError, match=r"json_tags, llama3_json, mistral, outside, pythonic; did you mean outside\?"):
        registry.find("outsid")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'mistal' among generic, hermes, .*; did you mean mistral\?"):
        registry.find("mistal")
    with pytest.raises(ValueError, match=r"pythonic$"):
        registry.find("zzz")
