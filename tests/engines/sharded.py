"""A small Llama in several safetensors shards, by transformers.

`sharded.py make DIRECTORY` writes one. `sharded.py say NAME` loads one, by path or by a name that the hub's cache has,
and prints as JSON what it says and what its weights sum up to. Run by an interpreter that has PyTorch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tokenizers
import torch
import transformers

VOCABULARY = 512
SHARD_SIZE = "300KB"
TOKENS = 8


def make(directory: str) -> None:
    """Random weights, the same each time, and a tokenizer with a word for each token."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory, max_shard_size=SHARD_SIZE)
    assert len(list(Path(directory).glob("*.safetensors"))) > 1
    words = tokenizers.models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(directory)


def say(name: str) -> None:
    """Load and generate; greedy, so the same each time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(name)
    with torch.no_grad():
        tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
    print(json.dumps({"tokens": tokens[0].tolist(), "weights": total}))


if __name__ == "__main__":
    {"make": make, "say": say}[sys.argv[1]](sys.argv[2])
