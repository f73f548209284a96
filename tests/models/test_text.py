from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from serving.models import text as text_module
from serving.models.text import GenerationDefaults, ModelFilesError, ModelText


def write(directory: Path, **files: Any) -> Path:
    """A model directory with a true tokenizer and these other files."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        file = directory / f"{stem}.{ending}"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


@pytest.fixture
def directory(tmp_path: Path, sentencepiece: ModelText) -> Path:
    return write(tmp_path / "m", tokenizer_json=sentencepiece.tokenizer.to_str())


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("vocabulary", ["text", "sentencepiece"])
def test_bytes_of_every_token(vocabulary: str, request: pytest.FixtureRequest) -> None:
    model: ModelText = request.getfixturevalue(vocabulary)
    special = {token for token, entry in model.tokenizer.get_added_tokens_decoder().items() if entry.special}
    for token in range(model.tokenizer.get_vocab_size()):
        raw = model.token_bytes(token)
        shown = model.tokenizer.decode([token], skip_special_tokens=False)
        if token in special:
            assert raw.decode() == shown
        elif vocabulary == "text":
            assert raw.decode(errors="replace") == shown, token
        else:
            assert raw.decode(errors="replace").removeprefix(" ") == shown, token


def test_bytes_of_many_tokens_are_their_text(text: ModelText) -> None:
    rng = random.Random(1)
    for _ in range(300):
        tokens = [rng.randrange(text.tokenizer.get_vocab_size()) for _ in range(rng.randint(1, 40))]
        raw = b"".join(text.token_bytes(token) for token in tokens)
        assert raw.decode(errors="replace") == text.tokenizer.decode(tokens, skip_special_tokens=False)


def test_tokens_outside_the_vocabulary_have_no_bytes(text: ModelText) -> None:
    assert text.token_bytes(10**6) == b""


def test_rendered_special_tokens_are_one_token_each(text: ModelText) -> None:
    rendered = text.template.render(HI)
    tokens = text.encode(rendered)
    assert tokens.count(text.tokenizer.token_to_id("<|im_start|>")) == 3
    assert text.tokenizer.decode(tokens, skip_special_tokens=False) == rendered


def test_where_the_template_may_be(directory: Path) -> None:
    with pytest.raises(ModelFilesError, match="no chat template"):
        ModelText(directory)
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "of the list{{ bos_token }}"}]
    write(directory, tokenizer_config_json={"chat_template": named, "bos_token": {"content": "<s>"}})
    assert ModelText(directory).template.render(HI) == "of the list<s>"
    write(directory, tokenizer_config_json={"chat_template": "a string{{ bos_token }}", "bos_token": "<s>"})
    assert ModelText(directory).template.render(HI) == "a string<s>"
    write(directory, chat_template_jinja="a file")
    assert ModelText(directory).template.render(HI) == "a file"
    write(directory, tokenizer_config_json={"chat_template": named[:1]})
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(ModelFilesError, match="no chat template"):
        ModelText(directory)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"no tokenizer\.json"):
        ModelText(tmp_path)


def test_generation_defaults(directory: Path) -> None:
    write(directory, chat_template_jinja="x")
    assert ModelText(directory).defaults == GenerationDefaults()
    write(directory, generation_config_json={"temperature": 0.6, "top_p": None, "top_k": 20, "eos_token_id": [1, 2]})
    assert ModelText(directory).defaults == GenerationDefaults(temperature=0.6, top_k=20)


def test_a_tokenizers_own_limits_do_not_hold(directory: Path) -> None:
    write(directory, chat_template_jinja="x")
    state = json.loads((directory / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    write(directory, tokenizer_json=state)
    assert len(ModelText(directory).encode("日日日日日")) == 5


def test_byte_letters_are_a_bijection() -> None:
    assert sorted(text_module._BYTE_OF.values()) == list(range(256))
