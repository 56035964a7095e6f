"""Tiny random models of several families, their tokenizer, and a little text: all made on the spot, nothing fetched.

The tokenizer is a real byte-level BPE with its own merges, special tokens and chat template: the end token is not the
padding token, and nothing is added to a text unless asked. The models differ where families differ: tied and untied
heads, learned positions, biases, soft caps, sliding windows, scaled logits.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 384
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# head_dim 16 is the smallest that every fast attention kernel accepts.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.15}
CAPPED = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 16}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", {**GPT2, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}),
    "qwen2": ("Qwen2Config", {**SIZES, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2Config", {**SIZES, **CAPPED, "sliding_window": 8, "num_hidden_layers": 4}),
    "granite": (
        "GraniteConfig",
        {**SIZES, "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "cohere": ("CohereConfig", {**SIZES, "logit_scale": 0.5, "tie_word_embeddings": True}),
}

TOPICS = {
    "weather": (
        ["The rain", "A cold wind", "The morning fog", "Bright sun", "A sudden storm"],
        ["covered", "left", "reached", "crossed", "spared"],
        ["the quiet harbour", "every field of barley", "our mountain hut", "the old bridge"],
    ),
    "kitchen": (
        ["The cook", "My grandmother", "A patient baker", "The new waiter", "Our neighbour"],
        ["salted", "tasted", "burnt", "served", "forgot"],
        ["the onion soup", "a loaf of rye bread", "two dozen eggs", "the plum cake"],
    ),
    "code": (
        ["The function", "A small script", "This loop", "The parser", "Our test"],
        ["returns", "reads", "counts", "skips", "prints"],
        ["the first value", "an empty list", "every line of the file", "None when nothing fits"],
    ),
}


def rows(num: int = 64, seed: int = 0) -> list[dict[str, str]]:
    """`num` different plain-text rows: {"text", "topic"}, two sentences each; deterministic given the seed."""
    draw = random.Random(seed)
    names = sorted(TOPICS)
    out: list[dict[str, str]] = []
    for index in range(num):
        topic = names[index % len(names)]
        who, does, what = TOPICS[topic]
        sentences = [f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}." for _ in range(2)]
        out.append({"text": f"Note {index}: {' '.join(sentences)}", "topic": topic})
    return out


def chats(num: int = 32, seed: int = 1) -> list[dict[str, object]]:
    """`num` different conversations of one or two turns: {"messages", "topic"}."""
    out: list[dict[str, object]] = []
    for index, row in enumerate(rows(num, seed)):
        number, answer = row["text"].split(": ")
        messages = [{"role": "user", "content": f"Read me {number.lower()}."}, {"role": "assistant", "content": answer}]
        if index % 4 == 0:
            messages += [{"role": "user", "content": "Thanks!"}, {"role": "assistant", "content": "Any time."}]
        out.append({"messages": messages, "topic": row["topic"]})
    return out


def write_jsonl(path: Path, lines: list[dict[str, str]] | list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def build_tokenizer(vocab: int = VOCAB, *, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `rows()`: ids 0, 1, 2 are pad, start and end; no bos is added."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((row["text"] for row in rows()), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.model_max_length = 128
    tokenizer.chat_template = chat_template
    return tokenizer


def build_model(family: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of a family, float32, in eval mode, whose predictions are far from uniform.

    `changes` override the config, such as `num_hidden_layers=2` (GPT-2: `n_layer`).
    """
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def save_folder(path: Path, family: str = "llama", *, seed: int = 0, **changes: object) -> Path:
    """A folder as a hub would give it: safetensors, config, generation config, tokenizer and chat template."""
    build_model(family, seed=seed, **changes).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path
