"""docs/models.md, from what `families.py` holds: `python -m serving.models.page > docs/models.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from serving.models.families import FAMILIES, Family, probe
from serving.models.template import ChatTemplate

_HEAD = """\
# Models

This page is made from `serving/models/families.py`: `python -m serving.models.page > docs/models.md`.

## Which models are served

Any chat model that vLLM runs and whose files have a `tokenizer.json` (a SentencePiece `tokenizer.model` alone is not
enough) and a chat template. Its family need not be on this page: what the files say comes first, and the table below
only fills in what they do not say.

```yaml
models:
  - source: embedded                  # SmolLM2-135M-Instruct, which comes as a package
  - source: /models/llama-3.1-8b      # a directory
    name: chat
    aliases: [default]
  - source: Qwen/Qwen3-8B             # a Hugging Face hub id
    revision: main
    tool_format: json_tags
    engine: {max_model_len: 16384}
```

| key | what it says |
| --- | --- |
| `models.N.source` | `embedded`, a directory in Hugging Face layout, or a hub id; fronts fetch only the small files |
| `models.N.revision` | branch, tag or commit of a hub id |
| `models.N.name` | the id that clients use; it may hold slashes. Default: the source, or the embedded model's name |
| `models.N.aliases` | other ids that mean this model |
| `models.N.tool_format` | how it writes tool calls, where what is found is wrong ([tools.md](tools.md#formats)) |
| `models.N.engine` | keys of `engine` that differ for this model |

What is read from the files:

| what | from |
| --- | --- |
| template | `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (of several the one named \
`default`), else our own for the family; without any of them the server does not start |
| family | `model_type` in `config.json` together with marks that the family's templates write; where there is no \
template the special tokens are looked at instead |
| what the template can show | tried, not read: small chats with a system message, tools, calls and results are \
rendered ([why](decisions/0007-capabilities-are-probed.md)) |
| tool format | the setting, else the form in which the template writes past calls, else the family's, else `generic` |
| stop tokens | `eos_token_id` in `generation_config.json`, and the family's that the vocabulary has |
| sampling | `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` in `generation_config.json`, where the \
caller says nothing |

A template is a program that comes with the model. It runs in a sandbox with bounds on time and size
([why](decisions/0008-templates-run-metered.md)). What it refuses is the caller's mistake: 422 with `template_error`, or
400 in the openai dialect.
"""

_SIZES = """\
## Families

Sizes are the example's, computed from the dimensions in its `config.json`; the KV cache is in bfloat16 over all layers.
"""

_WAYS = """\
## How they are prompted

*Shows* is what our own template of the family has a place for; the one in a model's files may have others. What a
template does not show goes into messages that it does ([tools.md](tools.md#templates)). Text between the think markers
is `reasoning_content` in the openai dialect.
"""

_NEEDS = """\
## What they need, and their ways

The card is an estimate: 90 % of its memory, less 1.5 GB for activations and CUDA, must hold the weights and the cache
of one sequence of the whole context, or of 8,192 tokens where the context is longer.
"""


def page() -> str:
    sizes = [["family", "example", "parameters", "context", "KV cache a token"], *map(_size, FAMILIES)]
    ways = [["family", "shows", "tool format", "think markers", "stop tokens"], *map(_way, FAMILIES)]
    needs = "\n".join(f"- **{family.name}** {family.gpu} {family.oddities}" for family in FAMILIES)
    return "\n".join([_HEAD, _SIZES, _table(sizes), _WAYS, _table(ways), _NEEDS, needs, ""])


def _size(family: Family) -> list[str]:
    parameters = f"{family.parameters:g} B" if family.parameters >= 1 else f"{family.parameters * 1000:g} M"
    cache = f"{family.kv_bytes_per_token / 1024:g} KiB"
    return [family.name, f"`{family.example}`", parameters, f"{family.context:,}", cache]


def _way(family: Family) -> list[str]:
    can = probe(ChatTemplate(family.template, {}))
    shown = {"system": can.system, "tools": can.tools, "calls": can.tool_calls, "results": can.tool_role}
    shows = ", ".join(word for word, there in shown.items() if there) or "none of it"
    return [family.name, shows, f"`{family.tool_format}`", _codes(family.think or ()), _codes(family.stop)]


def _codes(texts: Sequence[str]) -> str:
    return " ".join(f"`{text}`" for text in texts).replace("|", "\\|")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| " + " | ".join("---" for _ in rows[0]) + " |", *body, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
