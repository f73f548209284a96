"""The text side of one model: tokenizer, chat template, generation defaults. No torch.

Read from the model's own files: tokenizer.json, tokenizer_config.json, chat_template.jinja,
generation_config.json, config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serving.errors import TemplateRefused
from serving.models.families import match, probe, tool_format_of
from serving.models.template import ChatTemplate

FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # what `ModelText` reads, for downloads


class ModelFilesError(RuntimeError):
    """The model's directory lacks something that serving chat needs; says what."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's generation_config.json asks for where the caller says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class ModelText:
    """Tokenizer, template and what is known of the model, for one directory.

    `tool_format` is a setting that wins over what the template and the family say. Raises `ModelFilesError`.
    """

    def __init__(self, directory: Path, tool_format: str | None = None) -> None:
        self.directory = directory
        tokenizer_file = directory / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise ModelFilesError(f"{directory} has no tokenizer.json")
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = _json(directory / "tokenizer_config.json")
        generation = _json(directory / "generation_config.json")
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = {entry.content: token for token, entry in added.items() if entry.special}
        self.vocabulary = self.tokenizer.get_vocab_size()
        source = _template(directory, config)
        self.family = match(_json(directory / "config.json"), source or " ".join(self.special_ids))
        if source is None and self.family is not None:
            source = self.family.template
        if source is None:
            raise ModelFilesError(f"{directory} has no chat template")
        try:
            self.template = ChatTemplate(source, _special_tokens(config))
        except TemplateRefused as error:
            raise ModelFilesError(f"{directory}: {error}") from error
        self.capabilities = probe(self.template)
        self.tool_format = tool_format_of(self.template, self.family, tool_format)
        self.think = self.family.think if self.family is not None else None
        self.stop_token_ids = self._stop_token_ids(generation.get("eos_token_id"))
        self.defaults = _defaults(generation)
        self._token_bytes = lru_cache(maxsize=65536)(_TokenBytes(self.tokenizer))

    def _stop_token_ids(self, known: Any) -> tuple[int, ...]:
        """The family's stop tokens that this vocabulary has and the engine does not know from the generation config."""
        ends = set(known) if isinstance(known, list) else {known}
        stops = self.family.stop if self.family is not None else ()
        ids = (self.special_ids.get(stop) for stop in stops)
        return tuple(token for token in ids if token is not None and token not in ends)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text: the template has put the special tokens in already."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of text that no template has rendered: with what the tokenizer itself puts around a text."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; they need not be whole UTF-8 characters."""
        return self._token_bytes(token)


class _TokenBytes:
    """From a vocabulary entry to bytes, for byte-level (GPT-2) and SentencePiece vocabularies."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
        kinds = {decoder.get("type"), *(d.get("type") for d in decoder.get("decoders", ()))}
        self._byte_level = "ByteLevel" in kinds
        self._added = {token: entry.content for token, entry in tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        if (added := self._added.get(token)) is not None:
            return added.encode()
        entry = self._tokenizer.id_to_token(token)
        if entry is None:
            return b""
        if self._byte_level:
            return bytes(_BYTE_OF[char] for char in entry)
        if len(entry) == 6 and entry.startswith("<0x") and entry.endswith(">"):
            return bytes([int(entry[3:5], 16)])
        return entry.replace("\u2581", " ").encode()


def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed (openai/gpt-2, encoder.py:bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return table


_BYTE_OF = _byte_of()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text())
    return value if isinstance(value, dict) else {}


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # named templates: [{"name": "default", "template": …}, …]
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _defaults(config: dict[str, Any]) -> GenerationDefaults:
    known = {name: config[name] for name in GenerationDefaults.__dataclass_fields__ if config.get(name) is not None}
    return GenerationDefaults(**known)
