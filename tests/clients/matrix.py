"""docs/clients.md, made of what the tests wrote: `python -m tests.clients.matrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.clients.catalogue import CLIENTS, TITLES, results

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

_HEAD = """\
# Clients

Real clients, unmodified, against the real server with a real engine: `make test ARGS=tests/clients` runs them, and
`python -m tests.clients.matrix` makes this page of what came of it. Text on the Hugging Face path has the shapes of the
Hub's own chat-completion task; a client of that path that knows only OpenAI's calls sends `x-dialect: openai`.

Some rows say less than they seem to. A model that is still loading is played by a small server that answers as ours
does, pause and `Retry-After` included, and then passes on to it. Where the model may call a tool, text will do as well.
The model is a very small one, so arguments are checked against their schema and not for sense.
"""


def render(found: dict[str, Any]) -> str:
    named = [name for name in CLIENTS if name in found]
    notes: list[str] = []

    def cell(name: str, scenario: str) -> str:
        outcome = found[name]["scenarios"].get(scenario)
        if outcome is None:
            return ""
        if not outcome["detail"]:
            return "✓"
        if outcome["detail"] not in notes:
            notes.append(outcome["detail"])
        number = notes.index(outcome["detail"]) + 1
        return f"{'✓' if outcome['ok'] else '✗'} [{number}](#notes)"

    addresses = [["client", "version", "is told where", "asks"]]
    for name in named:
        client = CLIENTS[name]
        asks = f"{client.path.removesuffix('/v1')}/v1/chat/completions"
        told_where = client.call.replace("…", f"http://host{client.path}")
        addresses.append([name, found[name]["version"], f"`{told_where}`", f"`{asks}`"])
    outcomes = [["", *named]]
    outcomes += [[title, *(cell(name, scenario) for name in named)] for scenario, title in TITLES.items()]
    told = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return "\n".join(
        [
            _HEAD,
            _table(addresses),
            "\n## What they do\n\n✓ works, ✗ does not, empty: not something that this client does.\n",
            _table(outcomes),
            f"\n## Notes\n\n{told}\n",
        ]
    )


def _table(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body])


if __name__ == "__main__":
    PAGE.write_text(render(results()))
