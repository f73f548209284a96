"""The page about clients says what their tests found."""

from __future__ import annotations

from tests.clients.catalogue import CASES, CLIENTS, TITLES, results
from tests.clients.matrix import PAGE, render


def test_the_page_is_made_of_the_results() -> None:
    assert PAGE.read_text() == render(results()), "python -m tests.clients.matrix"


def test_the_results_are_of_every_client_and_scenario() -> None:
    found = results()
    assert list(found) == list(CLIENTS)
    for name, client in CLIENTS.items():
        assert set(found[name]["scenarios"]) == client.scenarios
    assert {scenario for _, scenario in CASES} == set(TITLES)


def test_cells_and_notes() -> None:
    outcomes = {"text": {"ok": True, "detail": ""}, "stream": {"ok": False, "detail": "broken"}}
    page = render({"openai-1": {"version": "1.2", "scenarios": outcomes}})
    assert "| text | ✓ |\n" in page
    assert "| stream | ✗ [1](#notes) |\n" in page
    assert "| text, async |  |\n" in page
    assert page.endswith("\n1. broken\n")
