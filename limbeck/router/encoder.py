"""A prompt as the mean of an encoder's last hidden rows: slower than hashed n-grams by far, and it knows synonyms.

The encoder is a folder on this machine (BERT and its kin, as `transformers` opens them); nothing is fetched. `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.errors import StoreError, TeacherError
from limbeck.models.config_check import check_config
from limbeck.models.weights import pickle_only
from limbeck.router.features import HEAD, TAIL, Vector
from limbeck.system.atomic import fingerprint, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_TOKENS = 512


@dataclass(frozen=True)
class TextEncoder:
    """An opened encoder: the other kind of `router_features.Features`. `hash` is made of its files."""

    path: Path
    hash: str
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    most_tokens: int

    @classmethod
    def open(cls, path: str | Path, *, expect: str | None = None) -> TextEncoder:
        """The encoder in a folder; `expect` is its hash when a router was fitted on it.

        Raises TeacherError for a folder that is no encoder, StoreError for one that has changed."""
        from transformers import AutoModel, AutoTokenizer

        path = Path(path)
        if problem := pickle_only(path):
            raise TeacherError(problem)
        if not (path / "config.json").is_file():
            raise TeacherError(f"{path} is no encoder (no config.json); give a folder that transformers saved.")
        check_config(path)
        found = _hash(path)
        if expect is not None and found != expect:
            raise StoreError(f"the encoder in {path} has changed since. Run `limbeck route fit REGISTRY` again.")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **options).eval()
        except (OSError, ValueError, KeyError) as error:
            raise TeacherError(f"the encoder in {path} cannot be opened: {error}") from error
        room = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS
        return cls(path, found, model, tokenizer, min(room, MOST_TOKENS))

    @property
    def size(self) -> int:
        return int(self.model.config.hidden_size)

    def counts(self, prompt: str) -> Vector:
        """The mean over its tokens, of length 1; empty for a prompt without a token. Of long prompts the beginning is
        read: 512 tokens at most, of the characters that hashing reads."""
        if len(prompt) > HEAD + TAIL:
            prompt = f"{prompt[:HEAD]} {prompt[-TAIL:]}"
        text = prompt.encode(errors="replace").decode()  # lone surrogates are no text to a tokenizer
        inputs = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.most_tokens)
        if not inputs["input_ids"].numel():
            return Vector(np.empty(0, np.int64), np.empty(0, np.float32))
        accepted = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            mean_D = self.model(**accepted).last_hidden_state[0].mean(0)
        mean_D = mean_D / mean_D.norm().clamp(min=1e-12)
        return Vector(np.arange(len(mean_D)), mean_D.numpy())


def _hash(path: Path) -> str:
    files = [*path.glob("*.json"), *path.glob("*.txt"), *path.glob("*.safetensors")]
    return fingerprint("encoder", [(file.name, sha256_file(file)) for file in sorted(files)])
