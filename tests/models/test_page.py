"""docs/models.md is what is made of the families."""

from __future__ import annotations

import re
from pathlib import Path

from serving.models.families import FAMILIES
from serving.models.page import page

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_the_one_that_is_made() -> None:
    assert PAGE.read_text() == page(), "python -m serving.models.page > docs/models.md"


def test_every_family_is_in_every_part() -> None:
    for family in FAMILIES:
        assert len(re.findall(rf"^\| {re.escape(family.name)} \|", page(), re.M)) == 2
        assert f"- **{family.name}** " in page()


def test_tables_have_as_many_cells_in_each_row() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page(), re.M):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
