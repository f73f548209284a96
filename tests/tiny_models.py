"""Tiny models of the true architectures: random weights, tokenizers trained here, nothing downloaded.

`python -m tests.tiny_models DIR` makes one for each of the six families of the chat-completion page. Each is what the
real one is, made small: its config class with the same ratios and quirks, its kind of tokenizer with its special
tokens, its chat template and ends. What they say is noise, but the same noise every time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from serving.models.families import FAMILIES, Family

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / "run" / "tiny-models"
CONTEXT = 4096
VOCABULARY = 2560  # entries trained, before special tokens and bytes; a small corpus may give fewer

_CORPUS = """\
What is the capital of France? The capital of France is Paris. Name three rivers: the Rhine, the Nile and the Amazon.
{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {"type": "object"}}}
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius", "days": 3}} {"temperature": 21.5, "ok": true}
You can call functions. To call one, answer with nothing but JSON. <tool_call> </tool_call> <tools> </tools> <think>
def add(a: int, b: int) -> int:\n    return a + b\n\nfor number in range(10):\n    print(f"{number}: {add(number, 1)}")
```python\nimport math\nprint(math.sqrt(2))\n```\n```output\n1.4142135623730951\n```
### Problem: Solve x^2 = 4.\n### Solution: x is 2 or -2, since 2 * 2 = 4 and (-2) * (-2) = 4.
Grüße aus Köln, ça va à Paris, señor; Привет, мир! 日本の首都は東京です。 你好,世界。 안녕하세요 مرحبا שלום 👋🌍🇫🇷
one two three four five six seven eight nine ten eleven twelve first second third last morning evening night today
water fire earth wind mountain forest island bridge street garden window kitchen table chair book paper letter story
small large short long young early late quick slow warm cold bright dark quiet strong gentle simple honest careful
walk speak listen write answer remember forget begin finish open close build break carry follow learn teach travel
mother father sister brother friend neighbour doctor teacher farmer sailor painter writer captain children people
apple bread cheese coffee sugar butter orange lemon tomato potato pepper onion garlic honey chicken breakfast dinner
January February March April May June July August September October November December Monday Friday Saturday Sunday
function variable number string boolean object array integer float class method module import export return while
python java rust server client request response token model engine queue batch stream cache memory thread process
elephant tiger rabbit monkey penguin dolphin eagle spider butterfly horse sheep kangaroo crocodile giraffe hedgehog
Europe Africa America Australia Germany Spain Italy Portugal Norway Sweden Greece Egypt Kenya Brazil Canada Mexico
red green blue yellow purple black white silver golden triangle circle square measure weight distance velocity energy
0 1 2 3 4 5 6 7 8 9 10 11 12 100 1000 2024 3.14159 the of and to in a is that for it as was with be by on not he I
"""


@dataclass(frozen=True)
class Tiny:
    """How one family is made small. `first` and `last` are special tokens before and after the trained vocabulary."""

    tokenizer: Callable[[list[str], list[str]], Tokenizer]
    first: list[str]
    config: dict[str, Any]
    ends: list[str]
    """The generation config's eos tokens, the tokenizer's own first."""
    bos: str
    pad: str | None = None
    unk: str | None = None
    last: list[str] = field(default_factory=list)
    adds_bos: bool = False


# tokenizers


def _corpus() -> list[str]:
    return [*_CORPUS.splitlines(keepends=True), *(ROOT / "LICENSE").read_text().splitlines(keepends=True)]


def _trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer, alphabet: list[str], normalizer: normalizers.Normalizer | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Entries and merges of a BPE vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].__getitem__), [(left, right) for left, right in state["merges"]]


def _numbered(entries: Iterable[str]) -> dict[str, int]:
    return {entry: number for number, entry in enumerate(dict.fromkeys(entries))}


def _pieces(first: list[str], last: list[str], *, prefix: bool, strips: bool) -> Tokenizer:
    """As SentencePiece writes it: pieces with ▁ for a space, and bytes for what has no piece.

    `prefix`: a text begins with a space of its own (Llama 2). `strips`: special tokens swallow the space behind them.
    """
    spaces = normalizers.Replace(" ", "▁")
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    entries, merges = _trained(pre_tokenizers.Split("▁", "merged_with_next"), [], normalizer)
    byte_entries = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = _numbered([*first, *byte_entries, *entries, *last])
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.add_special_tokens([AddedToken(entry, special=True, normalized=False) for entry in first])
    tokenizer.add_special_tokens([AddedToken(entry, special=True, normalized=False, rstrip=strips) for entry in last])
    return tokenizer


def _byte_level(first: list[str], last: list[str], *, splits: list[pre_tokenizers.PreTokenizer]) -> Tokenizer:
    """As GPT-2 has it: every byte is a letter, so nothing is unknown. `splits` are the family's rules for words."""
    steps = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)])
    entries, merges = _trained(steps, pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab=_numbered([*first, *entries, *last]), merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = steps
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(entry, special=True, normalized=False) for entry in [*first, *last]])
    return tokenizer


def _gemma(first: list[str], last: list[str]) -> Tokenizer:
    return _pieces(first, last, prefix=False, strips=False)


def _phi(first: list[str], last: list[str]) -> Tokenizer:
    return _pieces(first, last, prefix=True, strips=True)


def _words(pattern: str) -> Callable[[list[str], list[str]], Tokenizer]:
    """Byte-level, cut into words by one regular expression."""
    return lambda first, last: _byte_level(first, last, splits=[pre_tokenizers.Split(Regex(pattern), "isolated")])


def _deepseek(first: list[str], last: list[str]) -> Tokenizer:
    patterns = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+")
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return _byte_level(first, last, splits=[*cuts, pre_tokenizers.Digits(individual_digits=True)])


def _starcoder(first: list[str], last: list[str]) -> Tokenizer:
    gpt2 = pre_tokenizers.Split(
        Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"
    )
    return _byte_level(first, last, splits=[pre_tokenizers.Digits(individual_digits=True), gpt2])


_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# families

TINY = {
    "gemma-2": Tiny(
        tokenizer=_gemma,
        first=["<pad>", "<eos>", "<bos>", "<unk>"],
        last=["<start_of_turn>", "<end_of_turn>"],
        bos="<bos>",
        pad="<pad>",
        unk="<unk>",
        ends=["<eos>", "<end_of_turn>"],
        adds_bos=True,
        config={
            "model_type": "gemma2",
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,  # one of each kind: a window, then all
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,  # not hidden / heads, as in the real one
            "query_pre_attn_scalar": 32,
            "sliding_window": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.1": Tiny(
        tokenizer=_words(_LLAMA_3),
        first=[],
        last=[
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ],
        bos="<|begin_of_text|>",
        pad="<|finetune_right_pad_id|>",
        ends=["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
        adds_bos=True,
        config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 448,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
            "tie_word_embeddings": False,
        },
    ),
    "phi-3": Tiny(
        tokenizer=_phi,
        first=["<unk>", "<s>", "</s>"],
        last=["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        bos="<s>",
        pad="<|endoftext|>",
        unk="<unk>",
        ends=["<|endoftext|>", "<|assistant|>", "<|end|>"],
        config={
            "model_type": "phi3",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "sliding_window": 2047,
            "original_max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "numinamath": Tiny(
        tokenizer=_deepseek,
        first=[],
        last=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        bos="<｜begin▁of▁sentence｜>",
        pad="<｜end▁of▁sentence｜>",
        ends=["<｜end▁of▁sentence｜>"],
        adds_bos=True,
        config={
            "model_type": "llama",
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    "starchat2": Tiny(
        tokenizer=_starcoder,
        first=["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<file_sep>"],
        last=["<|im_start|>", "<|im_end|>"],
        bos="<|endoftext|>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        ends=["<|im_end|>", "<|endoftext|>"],
        config={
            "model_type": "starcoder2",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "num_key_value_heads": 1,
            "sliding_window": CONTEXT // 4,
            "use_bias": True,
            "norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "mistral-nemo": Tiny(
        tokenizer=_words(_TEKKEN),
        first=[
            "<unk>",
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "[TOOL_CALLS]",
        ],
        bos="<s>",
        unk="<unk>",
        ends=["</s>"],
        adds_bos=True,
        config={
            "model_type": "mistral",
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 32,  # not hidden / heads, as in the real one
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
}

_FAMILY = {family.name: family for family in FAMILIES}


def prepare(name: str, directory: Path = DIRECTORY) -> Path:
    """The tiny model of one family, made unless `directory` has it whole. Any number of processes may call at once."""
    model = directory / name
    recipe = _recipe(_FAMILY[name])
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(model, recipe):
            partial = model.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that died: the lock is ours
            partial.mkdir()
            _build(name, partial)
            files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            _write(partial / "manifest.json", {"recipe": recipe, "files": files})
            shutil.rmtree(model, ignore_errors=True)
            partial.rename(model)
    return model


def _recipe(family: Family) -> str:
    """Changes with whatever decides what is made."""
    return hashlib.sha256(Path(__file__).read_bytes() + family.template.encode()).hexdigest()


def _is_whole(model: Path, recipe: str) -> bool:
    try:
        manifest = json.loads((model / "manifest.json").read_bytes())
        return manifest["recipe"] == recipe and all(
            (model / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError):
        return False


def _build(name: str, directory: Path) -> None:
    import torch
    import transformers
    from transformers.utils import logging

    library: Any = transformers  # it is half typed
    bars: Any = logging
    bars.disable_progress_bar()
    tiny = TINY[name]
    tokenizer = tiny.tokenizer(tiny.first, tiny.last)
    ids = tokenizer.get_vocab()
    if tiny.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tiny.bos, "$A"], pair=[tiny.bos, "$A", "$B"], special_tokens=[(tiny.bos, ids[tiny.bos])]
        )
    special = {
        "bos_token_id": ids[tiny.bos],
        "eos_token_id": [ids[end] for end in tiny.ends] if len(tiny.ends) > 1 else ids[tiny.ends[0]],
        "pad_token_id": ids[tiny.pad] if tiny.pad else None,
    }
    torch.manual_seed(0)
    settings = {"max_position_embeddings": CONTEXT, "vocab_size": len(ids)} | tiny.config | special
    config = library.AutoConfig.for_model(**settings)
    model = library.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": tiny.bos, "eos_token": tiny.ends[0], "pad_token": tiny.pad, "unk_token": tiny.unk}
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": _FAMILY[name].template,
        }
        | {key: token for key, token in named.items() if token is not None},
    )
    _write(directory / "generation_config.json", {key: value for key, value in special.items() if value is not None})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    for name in TINY:
        began = time.monotonic()
        print(f"{prepare(name, directory)}  {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
