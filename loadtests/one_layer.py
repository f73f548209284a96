"""A Llama of one layer with random weights and the embedded model's tokenizer: an engine that is
nearly free, so that what stands before it is what is measured."""

from __future__ import annotations

import shutil
from pathlib import Path

from serving.models import embedded

NAME = "one-layer"


def prepare(directory: Path) -> Path:
    """Make the model in `directory` unless it is there."""
    if (directory / "model.safetensors").is_file():
        return directory
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    for file in embedded.prepare().iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, directory / file.name)
    return directory
