"""An expert opened: its model, its engine, its template, and its tokens as text."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from limbeck.engine.batching import BatchEngine
from limbeck.engine.serial import SerialEngine
from limbeck.errors import TeacherError
from limbeck.models.hf import HfLM
from limbeck.models.llamacpp import LlamaLM
from limbeck.models.open import open_lm
from limbeck.text.chat_template import ChatTemplate
from limbeck.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.engine.api import Engine
    from limbeck.experts import Expert
    from limbeck.serve.settings import Serving
    from limbeck.types import LocalLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedExpert:
    lm: LocalLM
    engine: Engine

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.lm.tokenizer)

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """What each token is in bytes; None where the tokenizer does not let us know."""
        try:
            return TokenBytes.of_tokenizer(self.lm.tokenizer)
        except (TeacherError, AttributeError) as error:
            logger.info("%s: the bytes of its tokens are not known: %s", self.lm.name, error)
            return None

    def bytes_of(self, token: int) -> bytes | None:
        table = self.token_bytes
        return table.of[token] if table is not None and token < len(table.of) else None

    def text_of(self, token: int) -> str:
        """A token as log-probs show it; "bytes:\\xe2" where it is no whole character."""
        value = self.bytes_of(token)
        if value is None:
            return str(self.lm.tokenizer.convert_ids_to_tokens(token))
        try:
            return value.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in value)


def opener(settings: Serving) -> Callable[[Expert, int], LoadedExpert]:
    """What opens an expert, in a thread: its model, and the engine that fits its kind. The other number are the bytes
    that keys and values may take."""

    def open_expert(expert: Expert, sequence_bytes: int) -> LoadedExpert:
        fixed = expert.card.format != "safetensors"  # the precision of other formats is their own
        lm = open_lm(expert.model_path, dtype="auto" if fixed else settings.dtype)
        return LoadedExpert(lm, _engine(lm, settings, sequence_bytes))

    return open_expert


def _engine(lm: LocalLM, settings: Serving, sequence_bytes: int) -> Engine:
    """Models of transformers and llama.cpp are written in batches; all others have sessions, which take turns."""
    if isinstance(lm, HfLM | LlamaLM):
        return BatchEngine(lm, slots=settings.slots, waiting=settings.waiting, memory_bytes=sequence_bytes)
    return SerialEngine(lm, slots=settings.slots, waiting=settings.waiting, memory_bytes=sequence_bytes)
