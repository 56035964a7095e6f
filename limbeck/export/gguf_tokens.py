"""A tokenizer as GGUF: tokens, kinds, merges, special tokens, and how llama.cpp is told to split text.

llama.cpp does not read a tokenizer's splitting rule, it knows some by name. Ours is compared with those as it is
written in tokenizer.json; one that is not among them is refused, because its tokens would silently be others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

ADVICE = "Export it to safetensors or ONNX instead, which keep the tokenizer as it is."
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = _WORDS + r"\p{N}" + _REST
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_SPLITS: dict[tuple[Any, ...], dict[bool, str]] = {
    ("gpt2",): {False: "gpt-2"},
    (GPT2, "bytes"): {False: "gpt-2"},
    ("digits", "gpt2"): {False: "smollm"},
    (QWEN2, "bytes"): {False: "qwen2"},
    (LLAMA3, "bytes"): {True: "llama-bpe", False: "smaug-bpe"},
}
"""llama.cpp's name of a way to split text, by its steps, and by whether a whole word that is a token is taken without
merging (`ignore_merges`)."""

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE, UNKNOWN = 1, 3, 4, 5, 6, 2
MOST_ENDS = 3
"""Kinds of tokens that end a reply in llama.cpp: end of text, of turn, of message."""


@dataclass(frozen=True)
class GgufTokens:
    """What is written. `kind` is llama.cpp's tokenizer: "gpt2" (byte-level BPE) or "llama" (SentencePiece's BPE, which
    has `scores` instead of `merges`)."""

    kind: str
    pre: str
    texts: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    add_bos: bool
    add_eos: bool
    space_prefix: bool


def read_tokens(tokenizer: PreTrainedTokenizerBase, vocab: int) -> GgufTokens:
    """The first `vocab` tokens of a tokenizer, as llama.cpp needs them.

    Raises TeacherError for a tokenizer that llama.cpp would apply differently.
    """
    backend = refuse_tokenizer(tokenizer)
    model, added = backend["model"], {token["id"]: token for token in backend["added_tokens"]}
    spm = bool(model.get("byte_fallback"))
    names = {index: text for text, index in tokenizer.get_vocab().items() if index < vocab}
    merges, scores = _merges(model), {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    bos, eos = added_around(tokenizer)
    return GgufTokens(
        kind="llama" if spm else "gpt2",
        pre="default" if spm else _split(backend),
        texts=[names.get(index, f"[PAD{index}]") for index in range(vocab)],
        types=[_type(index, names, added, model) for index in range(vocab)],
        merges=[] if spm else [f"{left} {right}" for left, right in merges],
        # A token that no merge makes comes below all others.
        scores=[scores.get(names.get(i, ""), -float(len(merges) + i)) for i in range(vocab)] if spm else [],
        add_bos=bos,
        add_eos=eos,
        space_prefix=spm and any(step["type"] == "Prepend" for step in _flat(backend["normalizer"], "normalizers")),
    )


def refuse_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as JSON. Raises TeacherError for one that llama.cpp would apply differently."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    if found := next(iter(_differences(backend)), None):
        raise TeacherError(f"this tokenizer cannot be part of a GGUF file: {found}. {ADVICE}")
    return backend


def caveat(tokenizer: PreTrainedTokenizerBase) -> str:
    """What llama.cpp does not do, and nearly no text shows: a clause for the card, "" where there is nothing."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    if all(step["type"] != "NFC" for step in _flat(backend["normalizer"], "normalizers")):
        return ""
    return "; llama.cpp does not compose characters (NFC): a text with combining characters becomes other tokens there"


def describe_tokens(
    writer: GGUFWriter, tokens: GgufTokens, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> None:
    """Write tokens, special ids, the tokens that end a reply (`ends`) and the chat template.

    Raises TeacherError where the tokens that end a reply are none, or more than a GGUF file can say.
    """
    eos: Any = tokenizer.eos_token_id
    if not ends or len(ends) > MOST_ENDS:
        raise TeacherError(
            f"the model has {len(ends)} tokens that end a reply; a GGUF file can name 1 to {MOST_ENDS}. Set "
            "eos_token_id in its generation_config.json."
        )
    writer.add_tokenizer_model(tokens.kind)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    if tokens.merges:
        writer.add_token_merges(tokens.merges)
    if tokens.scores:
        writer.add_token_scores(tokens.scores)
        writer.add_add_space_prefix(tokens.space_prefix)
    ordered = sorted(ends, key=lambda end: end != eos)  # the tokenizer's own first
    names = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for end, add in zip(ordered, names, strict=False):
        add(int(end))
    roles = {"bos": writer.add_bos_token_id, "pad": writer.add_pad_token_id, "unk": writer.add_unk_token_id}
    for role, add in roles.items():
        index = getattr(tokenizer, f"{role}_token_id")
        if isinstance(index, int) and index < len(tokens.texts):
            add(index)
    writer.add_add_bos_token(tokens.add_bos)
    writer.add_add_eos_token(tokens.add_eos)
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


# ---- how text is split -----------------------------------------------------------------------------------------------


def _differences(backend: dict[str, Any]) -> Iterator[str]:
    """What llama.cpp would do differently, as the end of a sentence."""
    model = backend["model"]
    if model.get("type") != "BPE":
        yield f"it is of the type {model.get('type')!r}; allowed is BPE"
        return
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            yield f"its {key} is {model[key]!r}, which llama.cpp does not know"
    for token in backend["added_tokens"]:
        flags = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
        if flags:
            yield f"its token {token['content']!r} has the flag {flags[0]}, which a GGUF file cannot say"
    if model.get("byte_fallback"):
        yield from _spm_differences(backend)
        return
    if [step["type"] for step in _flat(backend["normalizer"], "normalizers")] not in ([], ["NFC"]):
        yield f"its normalizer is {_brief(backend['normalizer'])}; allowed are none and NFC"
    _, pre = _steps(backend), _split(backend)
    if not pre:
        known = ", ".join(sorted({name for names in _SPLITS.values() for name in names.values()}))
        yield (
            f"it splits text by a rule that llama.cpp has no known name for ({_brief(backend['pre_tokenizer'])}, "
            f"ignore_merges {bool(model.get('ignore_merges'))}); known are those of {known}"
        )


def _split(backend: dict[str, Any]) -> str:
    """llama.cpp's name of the splitting rule, "" where it has none."""
    return _SPLITS.get(_steps(backend), {}).get(bool(backend["model"].get("ignore_merges")), "")


def _steps(backend: dict[str, Any]) -> tuple[Any, ...]:
    """The pre-tokenizer's steps in a form that can be compared; a step that is not understood stands as JSON."""
    pre = backend["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    return tuple(_step(step) for step in steps)


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use}:
            return "gpt2" if use else "bytes"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return regex
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            return regex  # what matches is kept, and these rules match everything
    return json.dumps(step, sort_keys=True)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."


# ---- SentencePiece's BPE ---------------------------------------------------------------------------------------------


def _spm_differences(backend: dict[str, Any]) -> Iterator[str]:
    steps = [step for step in _flat(backend["normalizer"], "normalizers") if step["type"] != "Prepend"]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    if steps != [spaces] or not _plain_split(backend["pre_tokenizer"]):
        yield (
            f"it has byte_fallback, but does not put \u2581 for spaces as SentencePiece does (normalizer "
            f"{_brief(backend['normalizer'])}, pre-tokenizer {_brief(backend['pre_tokenizer'])})"
        )
    merges = set(_merges(backend["model"]))
    missing = next((pair for pair in _pairs(backend) if pair not in merges), None)
    if missing:
        yield (
            f"llama.cpp would merge {missing[0]!r} and {missing[1]!r}, because {''.join(missing)!r} is a token, and "
            "this tokenizer does not (its merges are not those that SentencePiece makes of a vocabulary)"
        )


def _pairs(backend: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every way to make a token of two others, which is what SentencePiece merges."""
    added = {token["content"] for token in backend["added_tokens"]}
    tokens = {text for text in backend["model"]["vocab"] if text not in added and not _is_byte(text)}
    for text in tokens:
        for at in range(1, len(text)):
            if text[:at] in tokens and text[at:] in tokens:
                yield text[:at], text[at:]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _plain_split(pre: dict[str, Any] | None) -> bool:
    """Whether text is not split before merging (Gemma's rule splits at spaces, of which there are none by then)."""
    if pre is None:
        return True
    return pre.get("type") == "Split" and pre.get("pattern") == {"String": " "}


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if not part else list(part[key]) if part.get("type") == "Sequence" else [part]


def _merges(model: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]


def _type(index: int, names: dict[int, str], added: dict[int, dict[str, Any]], model: dict[str, Any]) -> int:
    if index not in names:
        return UNUSED
    text = names[index]
    if model.get("unk_token") == text and model.get("byte_fallback"):
        return UNKNOWN
    if index in added:
        return CONTROL if added[index]["special"] else USER_DEFINED
    return BYTE if model.get("byte_fallback") and _is_byte(text) else NORMAL


def added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether a text gets the bos token in front and the eos token behind. Raises TeacherError for other additions."""
    plain, whole = (list(tokenizer("a", add_special_tokens=add, verbose=False)["input_ids"]) for add in (False, True))  # type: ignore[arg-type]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for before in (False, True):
        for after in (False, True):
            if whole == [*([bos] if before else []), *plain, *([eos] if after else [])]:
                return before, after
    raise TeacherError(
        f"the tokenizer makes {whole} of a text whose tokens are {plain}; a GGUF file can add only its bos and eos "
        f"tokens ({bos}, {eos}). {ADVICE}"
    )
