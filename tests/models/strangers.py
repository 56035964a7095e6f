"""Model folders that no one would publish in good faith, or whole: each is the tiny Llama with one thing changed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def head_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_head(data: bytes, head: dict[str, Any] | bytes) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def _entry(data: bytes, **changes: Any) -> bytes:
    head = head_of(data)
    name = next(name for name in head if name != "__metadata__")
    return with_head(data, {**head, name: {**head[name], **changes}})


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "cut in its head": lambda data: data[:100],
    "cut in its data": lambda data: data[:-5],
    "longer than it says": lambda data: data + bytes(64),
    "a head beyond the file": lambda data: (2**40).to_bytes(8, "little") + data[8:],
    "a head of 2**63": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: with_head(data, b"{" * 64),
    "deep JSON": lambda data: with_head(data, b"[" * 200_000 + b"]" * 200_000),
    "a list": lambda data: with_head(data, b"[]"),
    "a shape beyond its bytes": lambda data: _entry(data, shape=[2**40, 2**20]),
    "a negative shape": lambda data: _entry(data, shape=[-4, 4]),
    "a place beyond the file": lambda data: _entry(data, data_offsets=[0, 2**50]),
    "a type that is none": lambda data: _entry(data, dtype="F99"),
    "a pointer of git-lfs": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a page of HTML": lambda data: b"<!doctype html><html>" + bytes(5000),
}
"""What a file of weights becomes."""

LYING: dict[str, dict[str, Any]] = {
    "layers without weights": {"num_hidden_layers": 40},
    "3,000 layers": {"num_hidden_layers": 3000},
    "10**9 layers": {"num_hidden_layers": 10**9},
    "a billion labels": {"num_labels": 10**9},
    "a vocabulary of a billion": {"vocab_size": 10**9},
    "rows of a million": {"hidden_size": 2**20},
    "a million heads": {"num_attention_heads": 2**20},
    "experts": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 10**7},
    "larger than its weights": {"intermediate_size": 60_000, "vocab_size": 60_000},
    "less than nothing": {"hidden_size": -64},
    "text for a number": {"hidden_size": "many"},
    "no head": {"num_attention_heads": 0},
    "another file": {"transformers_weights": "../outside.safetensors"},
    "patches of the library": {"fusion_config": {"anything": True}},
}
"""What a config says otherwise."""

INDICES: dict[str, Any] = {
    "out of the folder": {"weight_map": {"a": "../../outside.safetensors"}, "metadata": {}},
    "absolute": {"weight_map": {"a": "/etc/outside.safetensors"}, "metadata": {}},
    "a folder of its own": {"weight_map": {"a": "inner/model.safetensors"}, "metadata": {}},
    "another kind of file": {"weight_map": {"a": "config.json"}, "metadata": {}},
    "a name of 100,000 letters": {"weight_map": {"a": f"{'x' * 100_000}.safetensors"}, "metadata": {}},
    "a number": {"weight_map": {"a": 3}, "metadata": {}},
    "nothing": {"weight_map": {}, "metadata": {}},
    "no map": {"metadata": {}},
    "what is not there": {"weight_map": {"a": "model-00001-of-00002.safetensors"}, "metadata": {}},
}
"""What an index names, in the place of the weights."""


def damaged(sound: Path, folder: Path, kind: str) -> Path:
    """A copy of a model's folder with one thing wrong: a key of DAMAGED, LYING or INDICES."""
    shutil.copytree(sound, folder)
    if kind in DAMAGED:
        (folder / WEIGHTS).write_bytes(DAMAGED[kind]((sound / WEIGHTS).read_bytes()))
    elif kind in LYING:
        config = json.loads((sound / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | LYING[kind]))
    else:
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(INDICES[kind]))
    return folder
