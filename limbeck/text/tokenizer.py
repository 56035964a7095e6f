"""Tokenizers: loading, identity, and comparison of two."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from limbeck.errors import TeacherError
from limbeck.system.atomic import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from limbeck.text.encode import NAMED, _brief


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or a folder. Raises TeacherError when there is none, when it is damaged, or when it
    gives no character offsets (spans need them; `tokenizer.json` tokenizers do)."""
    advice = "Allowed are a hub id, or a folder with tokenizer.json and tokenizer_config.json."
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exception for a malformed tokenizer.json
        raise TeacherError(f"the tokenizer of {path!r} cannot be opened ({_brief(error, 300)}). {advice}") from error
    if not tokenizer.is_fast:
        raise TeacherError(
            f"the tokenizer of {path!r} ({type(tokenizer).__name__}) gives no character offsets. {advice}"
        )
    return tokenizer


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the chat template; "" when there is none."""
    return fingerprint(tokenizer.chat_template) if tokenizer.chat_template else ""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over all that decides how text becomes ids and ids become bytes: equal for the same tokenizer saved
    by another version, whatever its padding or truncation."""
    found = _identity(tokenizer)
    added = list(tokenizer("", verbose=False)["input_ids"])  # type: ignore[arg-type]
    return fingerprint(
        sorted(found.tokens.items()), found.merges, sorted(found.flags.items()), found.special, found.rules, added
    )


@dataclass(frozen=True)
class _Identity:
    """`tokens` by id, `merges` in order, `flags` of added tokens by id, `special` ids by role, `rules` by name."""

    tokens: dict[int, str]
    merges: list[list[str]]
    flags: dict[int, list[str]]
    special: dict[str, int | None]
    rules: dict[str, Any]


FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


def _identity(tokenizer: PreTrainedTokenizerBase) -> _Identity:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    model = backend["model"]
    rules = {name: _canonical(backend.get(name), name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    rules["model"] = {key: value for key, value in sorted(model.items()) if value and key not in ("vocab", "merges")}
    if isinstance(model.get("vocab"), list):  # unigram: pairs of token and score
        rules["scores"] = fingerprint(model["vocab"])
    flags = FLAGS if rules["normalizer"] else FLAGS[:-1]  # without a normalizer `normalized` says nothing
    merges = [list(merge.split(" ")) if isinstance(merge, str) else list(merge) for merge in model.get("merges", [])]
    return _Identity(
        tokens={index: token for token, index in tokenizer.get_vocab().items()},
        merges=merges,
        flags={token["id"]: [flag for flag in flags if token.get(flag)] for token in backend["added_tokens"]},
        special={role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")},
        rules=rules,
    )


def _canonical(rule: Any, part: str) -> Any:
    """A step of the tokenizer's pipeline without what changes no id and no byte."""
    if not isinstance(rule, dict):
        return rule
    for key in ("normalizers", "pretokenizers", "decoders"):
        if rule.get("type") == "Sequence" and key in rule:
            steps = [step for step in (_canonical(step, part) for step in rule[key]) if step is not None]
            return steps[0] if len(steps) == 1 else ({"type": "Sequence", "steps": steps} if steps else None)
    if rule.get("type") == "ByteLevel" and part == "decoder":
        return {"type": "ByteLevel"}
    return {key: value for key, value in rule.items() if key != "trim_offsets"}


def compare_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """Sentences that name what differs; [] when text becomes the same ids and ids the same bytes.

    Compared are tokens by id, merges, flags of added tokens, normalizer, pre-tokenizer, decoder and model settings. The
    roles of tokens are not (`compare_roles`), nor the padding token and saved padding or truncation settings: they
    change nothing here.
    """
    a, b = _identity(teacher), _identity(student)
    found = _compare_tokens(a, b) + _compare_merges(a.merges, b.merges)
    for rule in sorted(a.rules.keys() | b.rules.keys()):
        ours, theirs = a.rules.get(rule), b.rules.get(rule)
        if ours != theirs:
            pair = f": {_brief(json.dumps(ours), 120)} in the teacher, {_brief(json.dumps(theirs), 120)} in the student"
            found.append(f"the {rule.replace('_', '-')} differs{'' if rule == 'scores' else pair}")
    return found


def compare_roles(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """Sentences that say which token begins and ends a text, where two tokenizers name another one. An instruction
    model and its base differ so; every id means the same in both."""
    found = []
    for role in ("beginning", "end"):
        tokens = [getattr(one, "bos_token" if role == "beginning" else "eos_token") for one in (teacher, student)]
        if tokens[0] != tokens[1]:
            ours, theirs = (repr(token) if token else "none" for token in tokens)
            found.append(f"the token for the {role} of a text is {ours} in the teacher and {theirs} in the student")
    return found


def _compare_tokens(a: _Identity, b: _Identity) -> list[str]:
    differing = sorted(
        index for index in a.tokens.keys() | b.tokens.keys() if a.tokens.get(index) != b.tokens.get(index)
    )
    found = []
    for index in differing[:NAMED]:
        ours, theirs = (repr(one.tokens[index]) if index in one.tokens else "absent" for one in (a, b))
        found.append(f"id {index} is {ours} in the teacher and {theirs} in the student")
    if len(differing) > NAMED:
        found.append(f"{len(differing)} ids differ in all")
    common = sorted(index for index in a.flags.keys() | b.flags.keys() if index not in set(differing))
    flagged = [index for index in common if a.flags.get(index, []) != b.flags.get(index, [])]
    for index in flagged[:NAMED]:
        ours, theirs = (", ".join(one.flags.get(index, [])) or "an ordinary token" for one in (a, b))
        found.append(f"{a.tokens.get(index)!r} (id {index}) is {ours} in the teacher and {theirs} in the student")
    if len(flagged) > NAMED:
        found.append(f"{len(flagged)} added tokens have other flags")
    return found


def _compare_merges(a: list[list[str]], b: list[list[str]]) -> list[str]:
    if a == b:
        return []
    at = next((number for number, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ours, theirs = (" + ".join(map(repr, merges[at])) if at < len(merges) else "none" for merges in (a, b))
    return [
        f"the merges differ from number {at} on ({ours} in the teacher, {theirs} in the student; there are {len(a)} "
        f"and {len(b)})"
    ]
