"""What each token of a vocabulary is in bytes, and the way back.

Another program's tokens are compared by their bytes: as text, half a character becomes a replacement character, and
many tokens become the same one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.errors import TeacherError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"  # SentencePiece writes spaces like this
_SAMPLE = "def f(x):\n    return x + 12\tnaïve Ελλάδα 漢字 🙂 end"


def _printable_bytes() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (GPT-2): printable bytes stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _printable_bytes()


def bytes_of(token: str, *, byte_level: bool) -> bytes:
    """What a token that is not an added one stands for: byte-level BPE, or SentencePiece with byte fallback."""
    if byte_level and all(char in BYTES for char in token):
        return bytes(BYTES[char] for char in token)
    found = BYTE_TOKEN.fullmatch(token)
    if found:
        return bytes([int(found[1], 16)])
    return token.replace(SPACE, " ").encode("utf-8", "surrogatepass")


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TokenBytes:
    """`of[id]` are the bytes of a token (None where the vocabulary has a gap); `ids` the way back. Where several tokens
    have the same bytes, whole pieces go before single bytes (`<0x41>`), which tokenizers only use for want of a piece;
    bytes that two pieces share are not in `ids`. `special` holds control tokens by their text: text that merely looks
    like one has the same bytes, so they are found apart."""

    of: tuple[bytes | None, ...]
    ids: dict[bytes, int]
    special: dict[bytes, int]

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
        """Raises TeacherError when a sample text's tokens do not add up to its bytes: a kind of tokenizer that is not
        known here."""
        byte_level = is_byte_level(tokenizer)
        added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        controls = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        controls |= set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        of: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
        pieces: dict[bytes, list[int]] = {}
        single: dict[bytes, int] = {}
        for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
            plain = index not in added
            value = bytes_of(token, byte_level=byte_level) if plain else added[index].encode()
            of[index] = value
            if index in controls:
                continue
            if plain and not byte_level and BYTE_TOKEN.fullmatch(token):
                single[value] = index
            else:
                pieces.setdefault(value, []).append(index)
        ids = single | {value: found[0] for value, found in pieces.items() if len(found) == 1}
        for value, found in pieces.items():
            if len(found) > 1:
                ids.pop(value, None)
        table = cls(tuple(of), ids, {value: index for index in controls if (value := of[index]) is not None})
        table._prove(tokenizer)
        return table

    def _prove(self, tokenizer: PreTrainedTokenizerBase) -> None:
        found = self.join(tokenizer(_SAMPLE, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]
        if found.removeprefix(b" ") != _SAMPLE.encode():
            raise TeacherError(
                f"the tokens of {type(tokenizer).__name__} cannot be read as bytes: {_SAMPLE!r} comes back as "
                f"{found.decode('utf-8', 'replace')!r}. Log-probs of an endpoint need a byte-level or SentencePiece "
                "tokenizer; use trace.target.kind=text, or votes."
            )

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of a row of tokens. Raises ValueError for an id that is none."""
        parts = [self.of[index] if 0 <= index < len(self.of) else None for index in ids]
        if None in parts:
            raise ValueError(f"the vocabulary of {len(self.of)} tokens has no id {list(ids)[parts.index(None)]}")
        return b"".join(part for part in parts if part is not None)

    def find(self, value: bytes) -> int | None:
        """The one token of these bytes; a control token where no other has them."""
        found = self.ids.get(value)
        return self.special.get(value) if found is None else found
