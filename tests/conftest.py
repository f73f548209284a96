"""What several folders of tests share."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from serving.models import embedded
from serving.models.text import ModelText

# A machine that does other things at the same time is no failure.
hypothesis.settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def text() -> ModelText:
    """The text side of the embedded model: a byte-level (GPT-2) vocabulary."""
    return ModelText(embedded.prepare())


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    """The text side of a tiny model whose vocabulary is like Gemma's: pieces, and bytes to fall back on."""
    words = ["▁", "▁hello", "▁world", "hello", "wor", "ld", "é", "日", "▁▁"]
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(entry, special=True) for entry in entries[:3]])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    directory: Path = tmp_path_factory.mktemp("sentencepiece")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return ModelText(directory)
