"""How much positions count: classes of tokens from their bytes, places, and both together."""

import numpy as np
import pytest
import torch

from limbeck.recipe import FirstTokens, PlaceRamp, PositionWeights, TokenWeights
from limbeck.text.token_bytes import BYTES
from limbeck.train.position_weights import CLASSES, class_of, place_weights, token_classes, token_text, weigher
from limbeck.train.sources import plain, weighted
from limbeck.types import Row


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "digits"),
        (" 1984", "digits"),
        ("٣", "digits"),
        ("3rd", "words"),
        (" the", "words"),
        ("Ünder", "words"),
        ("\ufffd", "words"),
        (".", "punctuation"),
        (' ("', "punctuation"),
        ("=>", "punctuation"),
        ("_", "punctuation"),
        ("\n\n", "whitespace"),
        ("    ", "whitespace"),
        ("", "whitespace"),
    ],
)
def test_classes(text, kind):
    assert class_of(text) == kind


def test_bytes_of_a_token():
    assert len(BYTES) == 256 == len(set(BYTES.values()))
    assert token_text("Ġthe", byte_level=True) == " the"
    assert token_text("Ċ", byte_level=True) == "\n"
    assert token_text("Ã¼", byte_level=True) == "ü"
    assert token_text("▁the", byte_level=False) == " the"
    assert token_text("<0x0A>", byte_level=False) == "\n"


def test_classes_of_a_whole_tokenizer(tiny_tokenizer):
    """Each token's class is that of what it decodes to."""
    classes = token_classes(tiny_tokenizer)
    assert len(classes) == len(tiny_tokenizer)
    names = [CLASSES[index] for index in classes]
    assert (names[0], names[1], names[2]) == ("special", "special", "end")
    for index in range(3, len(names)):
        assert names[index] == class_of(tiny_tokenizer.decode([index]))
    assert {"digits", "punctuation", "whitespace", "words"} <= set(names)


def test_places():
    assert place_weights(FirstTokens(tokens=2, weight=3.0), 4).tolist() == [3.0, 3.0, 1.0, 1.0]
    assert place_weights(PlaceRamp(tokens=3, start=0.0, end=1.0), 5).tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert place_weights(PlaceRamp(tokens=1, start=2.0, end=1.0), 2).tolist() == [2.0, 1.0]
    assert place_weights(PlaceRamp(tokens=1, start=2.0, end=1.0), 0).tolist() == []


def row(ids, *spans):
    return Row("r", "train", "", "", np.array(ids, dtype=np.int32), spans, "test")


def test_weights_follow_the_supervised_positions(tiny_tokenizer):
    ids = tiny_tokenizer("Note 7.")["input_ids"]
    items = [row([1, *ids, 2], (1, len(ids) + 2)), row([1, *ids, 2, *ids, 2], (2, 4), (len(ids) + 2, 2 * len(ids) + 3))]
    by = PositionWeights(tokens=TokenWeights(digits=4.0, end=0.5), place=FirstTokens(tokens=1, weight=10.0))
    weigh = weigher(by, lambda: tiny_tokenizer)
    assert weigh is not None
    want = []
    for item in items:
        for start, end in item.spans:
            for place, token in enumerate(item.ids[start:end]):
                text = tiny_tokenizer.decode([token]).strip()
                own = 0.5 if token == 2 else 4.0 if text.isdecimal() else 1.0
                want.append(own * (10.0 if place == 0 else 1.0))
    assert {0.5, 4.0, 10.0} <= set(want)
    assert weigh(items).tolist() == want
    batch = weighted(plain(torch.device("cpu")), weigh)([items[1], items[0]])
    assert batch.weights_N is not None and batch.weights_N.tolist() == weigh([items[1], items[0]]).tolist()
    assert len(batch.weights_N) == batch.num_supervised


def test_without_weights_nothing_is_asked():
    def tokenizer():
        raise AssertionError("not needed")

    assert weigher(PositionWeights(), tokenizer) is None
    weigh = weigher(PositionWeights(place=FirstTokens(tokens=1, weight=2.0)), tokenizer)
    assert weigh is not None and weigh([row([1, 2, 3], (1, 3))]).tolist() == [2.0, 1.0]
