"""Tokens as bytes: every token of a text, both kinds of vocabulary, and what is ambiguous."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.errors import TeacherError
from limbeck.text.token_bytes import TokenBytes
from tests import tiny

TABLE = TokenBytes.of_tokenizer(tiny.build_tokenizer())
TOKENIZER = tiny.build_tokenizer()


def sentencepiece(extra=()):
    """A unigram with byte fallback, as SentencePiece models are saved."""
    singles = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *singles, "\u2581", "\u2581re", "ad", "a", "d", "x", "return", *extra]
    backend = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@given(st.text(max_size=40))
def test_byte_level_tokens_add_up_to_the_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    controls = (tiny.PAD, tiny.START, tiny.END)
    if not any(control in text for control in controls):
        assert TABLE.join(ids) == text.encode()
        assert [TABLE.find(TABLE.of[i]) for i in ids] == ids


def test_control_tokens_stand_apart():
    assert TABLE.special == {b"<|pad|>": 0, b"<|im_start|>": 1, b"<|im_end|>": 2}
    assert TABLE.find(b"<|im_end|>") == 2 and b"<|im_end|>" not in TABLE.ids
    assert TABLE.find(b"no such token at all") is None


def test_sentencepiece_pieces_go_before_bytes():
    tokenizer = sentencepiece()
    table = TokenBytes.of_tokenizer(tokenizer)
    ids = tokenizer("read a", add_special_tokens=False)["input_ids"]
    assert table.join(ids) == b" read a"
    piece = tokenizer.convert_tokens_to_ids("a")
    assert table.find(b"a") == piece and table.of[tokenizer.convert_tokens_to_ids("<0x61>")] == b"a"
    assert table.find(b"\xe6") == tokenizer.convert_tokens_to_ids("<0xE6>")


def test_bytes_of_two_pieces_are_nobodys():
    table = TokenBytes.of_tokenizer(sentencepiece(extra=[" ad", "\u2581ad"]))
    assert table.find(b" ad") is None
    assert table.find(b"ad") is not None


def test_what_is_no_token_is_told():
    with pytest.raises(ValueError, match="no id 9999"):
        TABLE.join([3, 9999])


def test_unknown_kinds_are_refused():
    words = {word: n for n, word in enumerate(["[UNK]", "def", "x", "##re"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TeacherError, match="cannot be read as bytes"):
        TokenBytes.of_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
