"""Log-probs of an endpoint as targets, against the model's own distribution and against outright expectations."""

import math

import numpy as np
import pytest
import torch

from limbeck.endpoint.align import Ends, align, check_text, token_id
from limbeck.endpoint.messages import Alternative, ApiToken
from limbeck.errors import UnalignedTokens
from limbeck.losses.support import SupportSpec, select
from limbeck.store import Codec
from limbeck.text.token_bytes import TokenBytes
from tests import tiny

TOKENIZER = tiny.build_tokenizer()
TABLE = TokenBytes.of_tokenizer(TOKENIZER)
END = 2
TOLD, UNTOLD = Ends((END,), True), Ends((END,), False)
FOREIGN = Alternative(" zebra", b" zebra", None, math.log(0.1))


def alternative(index, logp, *, by="bytes"):
    """A token as endpoints spell it: with true bytes, as vLLM spells ids, or as text alone."""
    value = TABLE.of[index]
    text = value.decode("utf-8", "replace")
    if by == "ids":
        return Alternative(f"token_id:{index}", f"token_id:{index}".encode(), index, logp)
    if by == "vllm":  # half a character has the bytes of a replacement character
        return Alternative(text, text.encode(), index, logp)
    return Alternative(text, value if by == "bytes" else None, None, logp)


def token(index, logp, top=(), *, by="bytes"):
    return ApiToken(*alternative(index, logp, by=by), tuple(alternative(i, lp, by=by) for i, lp in top))


def endpoint(logits, ids, k, by="bytes"):
    """What an endpoint tells of a reply: k most probable, and the sampled token."""
    logp = torch.log_softmax(logits.double(), 1)
    top = logp.topk(k)
    return [
        token(i, logp[n, i].item(), list(zip(top.indices[n].tolist(), top.values[n].tolist(), strict=True)), by=by)
        for n, i in enumerate(ids)
    ]


def masses(support, n):
    found = zip(support.head_ids_nH[n].tolist(), support.head_p_nH[n].tolist(), strict=True)
    return {i: p for i, p in found if i >= 0}


@pytest.mark.parametrize("by", ["bytes", "ids", "vllm"])
def test_supports_are_the_models_own(by):
    """Every byte is a token here, so alternatives are often parts of characters."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(12, 384, generator=g) * 2
    ids = torch.randint(3, 384, (12,), generator=g).tolist()
    found = align(endpoint(z, ids, 8, by), TABLE, TOLD)
    assert found.ids.tolist() == ids and found.ids.dtype == np.int32
    assert found.num_hard == 0 and found.unknown == 0
    own = select(z.clone(), SupportSpec(8, 0), 1.0, g)
    p = torch.softmax(z.double(), 1)
    for n, label in enumerate(ids):
        expected = masses(own, n) | {label: p[n, label].item()}
        assert masses(found.support, n) == pytest.approx(expected, rel=1e-5)
        assert float(found.support.tail_n[n]) == pytest.approx(1 - sum(expected.values()), abs=1e-6)


def test_supports_go_through_the_codec():
    g = torch.Generator().manual_seed(1)
    z = torch.randn(40, 384, generator=g) * 2
    ids = z.argmax(1).tolist()
    found = align(endpoint(z, ids, 5), TABLE, TOLD)
    codec, rounding = Codec(384, 6, 0), np.random.default_rng(0)
    records = [codec.encode(found.support, found.ids, "0123456789abcdef", rounding) for _ in range(200)]
    total = torch.zeros(40, 384)
    for record in records:
        dist = codec.decode([(np.frombuffer(record, np.uint8), found.ids)])
        total.scatter_add_(1, dist.ids_NK.clamp_min(0), dist.logp_NK.exp())
    own = torch.zeros(40, 384).scatter_add_(1, found.support.head_ids_nH.clamp_min(0), found.support.head_p_nH)
    torch.testing.assert_close(total / 200, own, rtol=0, atol=0.01)


def test_unknown_and_repeated_alternatives_are_left_to_the_tail():
    one = token(70, math.log(0.5), [(70, math.log(0.5)), (71, math.log(0.2)), (71, math.log(0.05))])
    one = ApiToken(one.text, one.bytes, one.id, one.logp, (*one.top, FOREIGN))
    found = align([one], TABLE, TOLD)
    assert masses(found.support, 0) == pytest.approx({70: 0.5, 71: 0.2})
    assert float(found.support.tail_n) == pytest.approx(0.3)
    assert found.unknown == pytest.approx(0.1)


@pytest.mark.parametrize("never", [-9999.0, -math.inf])
def test_placeholders_are_no_probability(never):
    """vLLM under a grammar, and old endpoints for a token outside the most probable."""
    one = token(70, never, [(71, math.log(0.6)), (72, never)])
    found = align([one], TABLE, TOLD)
    assert masses(found.support, 0) == pytest.approx({71: 0.6})
    assert found.num_hard == 0


def test_a_position_of_which_nothing_is_told_is_its_label():
    found = align([token(70, -9999.0), token(71, math.log(0.5))], TABLE, TOLD)
    assert masses(found.support, 0) == {70: 1.0} and float(found.support.tail_n[0]) == 0
    assert found.num_hard == 1


@pytest.mark.parametrize("logp", [math.nan, 0.5])
def test_what_is_no_log_prob_is_refused(logp):
    with pytest.raises(UnalignedTokens, match="log-prob is"):
        align([token(70, math.log(0.5), [(71, logp)])], TABLE, TOLD)


def test_masses_above_one_are_refused_unless_rounded():
    with pytest.raises(UnalignedTokens, match=r"add up to 1\.2"):
        align([token(70, math.log(0.6), [(71, math.log(0.6))])], TABLE, TOLD)
    found = align([token(70, -0.69, [(71, -0.69)])], TABLE, TOLD)  # log 0.5, to two digits
    assert sum(masses(found.support, 0).values()) == pytest.approx(1)
    assert float(found.support.tail_n[0]) == 0


def test_a_token_of_another_vocabulary_is_named():
    with pytest.raises(UnalignedTokens, match="token 1 of the reply is ' zebra' .*no token of this vocabulary"):
        align([token(70, -1.0), ApiToken(*FOREIGN)], TABLE, TOLD)


def test_text_with_a_replacement_character_is_ambiguous():
    half = "é".encode()[:1]
    assert token_id(ApiToken("\ufffd", None, None, -1.0), TABLE) is None
    assert token_id(ApiToken("\ufffd", half, None, -1.0), TABLE) == TABLE.ids[half]


def test_ids_must_not_contradict_bytes():
    index = TABLE.ids[b"a"]
    assert token_id(ApiToken("a", b"a", index, -1.0), TABLE) == index
    assert token_id(ApiToken("b", b"b", index, -1.0), TABLE) is None
    assert token_id(ApiToken("", b"", END, -1.0), TABLE) == END  # control tokens are told without text
    assert token_id(ApiToken("", b"", 100_000, -1.0), TABLE) is None


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_a_told_end_keeps_its_distribution():
    tokens = [token(70, math.log(0.5)), token(END, math.log(0.8), [(END, math.log(0.8)), (71, math.log(0.1))])]
    found = align(tokens, TABLE, TOLD, ended=True)
    assert found.ids.tolist() == [70, END] and found.num_hard == 0
    assert masses(found.support, 1) == pytest.approx({END: 0.8, 71: 0.1})
    with pytest.raises(UnalignedTokens, match="probe again"):
        align(tokens, TABLE, UNTOLD, ended=True)


def test_an_end_that_is_not_told_is_a_label():
    found = align([token(70, math.log(0.5))], TABLE, UNTOLD, ended=True)
    assert found.ids.tolist() == [70, END] and found.num_hard == 1
    assert masses(found.support, 1) == {END: 1.0} and float(found.support.tail_n[1]) == 0
    assert align([token(70, math.log(0.5))], TABLE, UNTOLD).ids.tolist() == [70]  # cut off: no end


def test_ends_that_are_not_told_leave_targets_unbiased():
    """Over the tokens that a teacher samples at one prefix: the mean target is its distribution. Keeping the end's
    cell in the others would count it twice."""
    p = {END: 0.3, 70: 0.4, 71: 0.2, 72: 0.1}
    top = [(i, math.log(q)) for i, q in p.items() if i != 72]  # 72 is in the tail
    mean, naive = dict.fromkeys([*p, "tail"], 0.0), 0.0
    for sampled, q in p.items():
        tokens = [] if sampled == END else [token(sampled, math.log(q), top)]
        found = align([token(80, -0.1), *tokens], TABLE, UNTOLD, ended=sampled == END)
        for index, mass in masses(found.support, 1).items():
            mean[index] += q * mass
        mean["tail"] += q * float(found.support.tail_n[1])
        naive += q * (1.0 if sampled == END else p[END])
    mean["tail"] += mean.pop(72)
    assert mean == pytest.approx({END: 0.3, 70: 0.4, 71: 0.2, "tail": 0.1}, abs=1e-6)
    assert naive == pytest.approx(0.51)


def test_where_the_end_was_all_but_certain_the_rest_is_its_label():
    found = align([token(70, math.log(1e-5), [(END, math.log(1 - 1e-5))])], TABLE, UNTOLD)
    assert masses(found.support, 0) == {70: 1.0} and found.num_hard == 1


# ---- text ------------------------------------------------------------------------------------------------------------


def test_tokens_spell_the_reply():
    ids = np.array(TOKENIZER("The cook salted é", add_special_tokens=False)["input_ids"])
    check_text(np.append(ids, END), "The cook salted é", TABLE)
    check_text(ids[:-1], "The cook salted", TABLE)  # half a character at the end
    check_text(ids, "The cook", TABLE, cut=True)
    with pytest.raises(UnalignedTokens, match="spell other text"):
        check_text(ids, "The cook", TABLE)
    with pytest.raises(UnalignedTokens, match="'tasted"):
        check_text(ids, "The cook tasted é", TABLE)


def test_no_reply_at_all_is_no_position():
    found = align([], TABLE, UNTOLD)
    assert len(found.ids) == 0 and found.support.head_ids_nH.shape[0] == 0
    assert align([], TABLE, UNTOLD, ended=True).ids.tolist() == [END]
