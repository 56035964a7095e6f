"""What must not be written: found wherever it stands, and what is harmless stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import CaptureError
from limbeck.text.redact import BUILT_IN, iban_holds, is_secret, luhn, make_redactor

ALL = make_redactor(("all",))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
plain = st.text("abcdefghij klmnopq\n", max_size=30)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("sk-proj-abcDEF123456_7890-xyz and sk-ant-api03-abcdefghijklmnop", "[key] and [key]"),
        ("ghp_0123456789abcdefghijABCD, hf_abcdefghijklmnopqrstuv.", "[key], [key]."),
        ("AKIAIOSFODNN7EXAMPLE AIzaSyA0123456789abcdefghijklmnopqrstu", "[key] [key]"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer [key]"),
        ('{"api_key": "0123456789abcdef0"}', '{"api_key": "[key]"}'),
        ('{\\"api_key\\": \\"0123456789abcdef0\\"}', '{\\"api_key\\": \\"[key]\\"}'),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN", "[key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n+/=\n-----END RSA PRIVATE KEY-----\nx", "[key]\nx"),
        ("write to Ann.Lee+x@mail.example.co.uk!", "write to [email]!"),
        (
            "call +49 (0)89 1234-5678 or 0044 20 7946 0958 or (555) 123-4567 or 555-123-4567",
            "call [phone] or [phone] or [phone] or [phone]",
        ),
        ("card 4111 1111 1111 1111 123, 5500-0000-0000-0004; 378282246310005", "card [card] 123, [card]; [card]"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND MORE, GB82WEST12345698765432", "IBAN [iban] AND MORE, [iban]"),
        (
            "ann@m\u00fcnchen.de, \u7528\u6237@\u4f8b\u5b50.\u516c\u53f8; b@xn--mnchen-3ya.de",
            "[email], [email]; [email]",
        ),
        (
            "\u0438\u0432\u0430\u043d@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444 c@a.xn--p1ai d@x.example.",
            "[email] [email] [email].",
        ),
        ("pay 4111111111111111. Then 5500000000000004, 12/27", "pay [card]. Then [card], 12/27"),
        ("host 192.168.0.255:80 (10.0.0.1)", "host [ipv4]:80 ([ipv4])"),
    ],
)
def test_shapes(text, want):
    assert ALL.text(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "task-force-one-two-three-four-five", "version 1.2.3.4.5 of 2024-11-25, 12:30:45", "1234567890123456",
        "x = 3.141592653589793 + 1e-10", "a@b", "@decorator\ndef f(self): pass", "192.168.0.256",
        "ISBN 978-3-16-148410-0",
        "1 234 567 + 89 = ?", "f(10, 200, 3000)", "assert area(10) == 1256.6370614359173", "2000000-400000=1600000",
        "0.4111111111111111", "4111111111111111.25 is a sum", "4000000000000 - 1 = 3999999999999",
        "5.500000000000004",
        "The bearer of this letter", "US12 IS NOT AN ACCOUNT NUMBER",
    ],
)  # fmt: skip
def test_what_is_harmless_stays(text):
    assert ALL.text(text) == text


@given(plain, st.text(LETTERS, min_size=20, max_size=60), plain)
def test_keys_are_found_whatever_stands_around_them(before, secret, after):
    for prefix in ("sk-", "ghp_", "hf_", "gsk_", "xai-"):
        assert secret not in make_redactor(("none",)).text(f"{before} {prefix}{secret} {after}")


@pytest.mark.parametrize("word", [
    *("anything", "not-needed", "EMPTY", "no-key-required", "lm-studio", "sk-anything", "dummy_key", "Bearer anything"),
    *("none", "ollama", "Unused", " " * 9),
])  # fmt: skip
def test_a_key_that_is_a_word_is_no_secret(word):
    clean = make_redactor(("none",)).with_secrets([word])
    text = f"Can I put {word} in? So {word}-llm says."
    assert not is_secret(word) and clean.text(text) == text


@pytest.mark.parametrize("key", [
    *("abcd1234", "token-abc123", "hunter22", "qwertyuiopasdf", "aBcDeFgH", "p@ssword", "31415926"),
    *("correct-horse-battery-staple", "\u043f\u0430\u0440\u043e\u043b\u044c-\u0430\u0431\u0432"),
])  # fmt: skip
def test_a_key_that_could_keep_somebody_out_is_one(key):
    assert make_redactor(("none",)).with_secrets([key]).text(f"say {key} now") == "say [key] now"


@given(st.text(min_size=8, max_size=40).filter(is_secret), st.text(max_size=60), st.text(max_size=60))
def test_the_clients_own_key_is_found_whatever_its_shape(secret, before, after):
    clean = make_redactor(("none",)).with_secrets([secret])
    value = clean.value({"a": [f"{before}{secret}{after}", {secret: 1}], "b": None, "c": 1.5})
    strings = [value["a"][0], *value["a"][1]]
    # What is put in its place could only spell it again together with what stands around it.
    assert all(secret not in one or secret in f"{before}[key]{after}" for one in strings)


@given(st.text(LETTERS.lower()[:26] + "0123456789._+-", min_size=1, max_size=20), plain)
def test_mail_addresses(name, text):
    assert f"{name}@x.example" not in ALL.text(f"{text} {name}@x.example {text}") or name[0] in ".+-"


@given(st.integers(10**14, 10**15 - 1), st.sampled_from(["", " ", "-"]))
def test_cards_with_a_right_check_digit(number, gap):
    body = f"4{number}"[:15]
    digits = next(body + str(digit) for digit in range(10) if luhn(body + str(digit)))
    written = gap.join(re.findall("....", digits))
    assert ALL.text(f"pay {written} now") == "pay [card] now"
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert make_redactor(("card",)).text(f"pay {wrong} now") == f"pay {wrong} now"


@given(st.text("0123456789", min_size=18, max_size=18), st.booleans())
def test_ibans_with_right_check_digits(account, grouped):
    check = next(f"{number:02d}" for number in range(2, 99) if iban_holds(f"DE{number:02d}{account}"))
    bare = f"DE{check}{account}"
    assert make_redactor(("iban",)).text(" ".join(re.findall(".{1,4}", bare)) if grouped else bare) == "[iban]"


@given(st.text(max_size=200))
def test_once_is_enough(text):
    once = ALL.text(text)
    assert ALL.text(once) == once


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | plain, st.lists))
def test_values_keep_their_shape(value):
    assert make_redactor(("none",)).value(value) == value


def test_rules_are_chosen_by_name_and_ones_own_come_on_top():
    text = "a@b.example 10.0.0.1 TCK-77 sk-0123456789abcdefgh"
    assert make_redactor(("none",)).text(text) == "a@b.example 10.0.0.1 TCK-77 [key]"
    assert make_redactor(("email",)).text(text) == "[email] 10.0.0.1 TCK-77 [key]"
    assert make_redactor((r"ticket=TCK-\d+",)).text(text) == "[email] [ipv4] [ticket] [key]"
    assert make_redactor((r"ticket=TCK-\d+", "none")).text(text) == "a@b.example 10.0.0.1 [ticket] [key]"
    assert set(BUILT_IN) == {"email", "phone", "card", "iban", "ipv4"}
    with pytest.raises(CaptureError, match="must be of a-z"):
        make_redactor(("Ticket No=x",))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        "1 " * 100_000,
        "a.b@" * 50_000,
        "AB12 " * 40_000,
        "+1 " * 60_000,
        "-----BEGIN PRIVATE KEY-----" * 5000,
        "sk-" * 60_000,
        "eyJaaaaaaaaa." * 15_000,
    ],
)
def test_no_text_takes_long(text):
    """200,000 characters of the worst kind: a rule that is worse than linear would take minutes."""
    ALL.text(text)
