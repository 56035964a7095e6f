"""Tiny models of every family that goes into GGUF, with norms and biases that matter, and tokenizers that split text in
each way that llama.cpp knows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from limbeck.export.gguf_tokens import LLAMA3, QWEN2
from limbeck.models.hf import HfLM
from tests import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
SIZES = tiny.SIZES
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "llama with biases, its own head and wide heads": (
        "LlamaConfig",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama 3.1's positions": ("LlamaConfig", {**SIZES, "rope_parameters": LLAMA3_ROPE}),
    "llama with linear positions": ("LlamaConfig", {**SIZES, "rope_parameters": LINEAR_ROPE}),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**SIZES, **tiny.CAPPED, "sliding_window": 8, "num_hidden_layers": 4}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SIZES, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7},
    ),
}


def build(name: str = "llama", *, tokenizer: PreTrainedTokenizerBase | None = None, **changes: Any) -> HfLM:
    """A model of MODELS in memory; norms and biases are drawn as well, so that a wrong one shows."""
    config, settings = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**settings, **changes})).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim == 1:
                    tensor.add_(0.2 * torch.randn(tensor.shape))
    return HfLM.wrap(model, tokenizer or tiny.build_tokenizer(), name=name)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS: dict[str, tuple[Any, bool]] = {
    "gpt-2": (GPT2, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), False),
    "qwen2": (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]), False),
    "llama-bpe": (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]), True),
    "smaug-bpe": (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]), False),
}
CORPUS = [
    "The rain doesn't stop, it's 12 345 6789 0 o'clock.\n\n\tNew line  two  spaces   three.\n",
    "def f(x, y=10):\n    return x ** 2 + y  # we'll see\r\n\r\n",
    "Füße café naïve Привет мир 東京 タワー ½ ٣٤ x² 👩‍🚀🚀 a\u00a0b\u3000c",
    "DON'T WE'VE I'm he'd <b>&amp;</b> {{x}} http://a.b/c?d=e#f_g !!! ... --- ===",
]
HARD = [
    *CORPUS,
    "",
    " ",
    "\n",
    "  \n \n\n x",
    "1234567 12 1,000,000.50 3rd x1y2z3 ⅷ ²³",
    "a<|im_end|>b <|im_start|>user\nhi<|im_end|>\n",
    "'S'T're 've 'LL o'clock ''' \"'",
    "\ttabs\t\tand \x0b\x0c weird\u2003spaces\u200b\ufeff",
    "e\u0301 ni\u0303 🏴󠁧󠁢󠁥󠁮󠁧󠁿 \u202eabc नमस्ते สวัสดี",
]


def bpe(split: str, *, vocab: int = 450) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits text in one of SPLITS."""
    pre, ignore_merges = SPLITS[split]
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[tiny.PAD, tiny.START, tiny.END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*CORPUS, *(row["text"] for row in tiny.rows())], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=tiny.PAD, eos_token=tiny.END)
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.START]})
    tokenizer.chat_template = tiny.CHATML
    return tokenizer


def spm(*, prefix: bool = False, all_merges: bool = True) -> PreTrainedTokenizerFast:
    """A BPE as SentencePiece makes them: "▁" for spaces, bytes for what has no token, a bos token in front. With
    `prefix` a space is put in front of a text (Llama 2), else not (Gemma). With `all_merges` every way to make a token
    of two others is a merge, as in conversions from SentencePiece."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", tiny.START, tiny.END]
    learnt = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    learnt.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*special, *(f"<0x{index:02X}>" for index in range(256))],
        show_progress=False,
        max_token_length=8,
    )
    learnt.train_from_iterator([*CORPUS[:2], *(row["text"] for row in tiny.rows())], trainer)
    model = json.loads(learnt.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    if all_merges:
        plain = [text for text in vocab if vocab[text] >= 262]
        splits = {text: [(text[:at], text[at:]) for at in range(1, len(text))] for text in plain}
        merges = [pair for text in plain for pair in splits[text] if pair[0] in splits and pair[1] in splits]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])  # type: ignore[assignment]
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.add_special_tokens({"additional_special_tokens": [tiny.START, tiny.END]})
    tokenizer.chat_template = "{{ bos_token }}" + tiny.CHATML
    return tokenizer
