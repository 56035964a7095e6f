"""A template may do what it likes: it ends, in bounded time and memory, in a text or in an error of its own."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from limbeck.errors import DataError
from limbeck.text import sandbox
from limbeck.text.chat_template import ChatTemplate, TemplateSettings
from limbeck.text.sandbox import TemplateLimit, render_template
from tests import tiny

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": " Hello? "},
    {"role": "assistant", "content": "Hi.", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, None]}}}]},
]

SOUND = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ':' ~ m.content | trim }}{{ loop.last }}\n"
    "{% endfor %}",
    "{% set ns = namespace(n=1) %}{% for i in range(5) %}{% set ns.n = ns.n + i * 2 %}{% endfor %}{{ ns.n }}",
    "{% macro say(x, y='?') %}<{{ x }}{{ y }}>{% endmacro %}{{ say('a') }}{% set z %}q{{ say(2, y=3) }}{% endset %}"
    "{{ z }}",
    "{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}={{ v }};{% endfor %}{{ [1, 2] | join(', ') }}",
    "{{ messages | tojson }}{{ messages[1].tool_calls | tojson(indent=2) }}"
    "{{ messages | map(attribute='role') | list }}",
    "{{ '%s-%d' % ('a', 3) }}{{ 'x{}y{z}'.format(2, z='w') }}{{ messages[0]['content'].split('l')[-1] }}{{ absent }}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}{{ messages[::-1][0].role }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% generation %}G{{ 1 + 1 }}{% endgeneration %}{{ 'a,b' | replace(',', ';') | indent(2) }}"
    "{{ [3, 1] | sort | first }}",
    "{{ dict(a=1) | items | list }}",
]

UNSOUND = {
    "steps": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}x{% endfor %}{% endfor %}",
    "range": "{{ range(10 ** 9) }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "digits": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "times": "{{ 'x' * 10 ** 9 }}",
    "list times": "{{ [1] * 10 ** 9 }}",
    "doubled": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "set": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "nested": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "maps": "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "batches": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
    "{% set ns.x = ([1] | batch(2, ns.x) | list) + [ns.x] %}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wide macro": "{% macro f(x) %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endmacro %}{{ f('a' * 9999) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "indent": "{{ ('a\n' * 99999) | indent(9999) }}",
    "padding": "{{ 'x'.ljust(10 ** 9) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "format of a width": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "replace": "{{ ('a' * 999999).replace('a', 'b' * 999) }}",
    "join": "{{ ('b' * 9999).join(range(99999) | map('string') | list) }}",
    "recursive": "{% for i in [[1, [2]]] recursive %}{{ loop(i) }}{% endfor %}",
    "rounding": "{{ 1 | round(10 ** 9, 'ceil') }}",
    "sum": "{{ [[1]] | sum(start=[]) }}",
    "include": "{% include 'x' %}",
    "zero": "{{ 1 / 0 }}",
    "syntax": "{% if %}",
    "own words": "{{ raise_exception('no system role') }}",
    "long": "{#" + "x" * 2**20 + "#}",
}


@pytest.mark.parametrize("source", SOUND)
def test_a_sound_template_says_what_transformers_makes_of_it(source: str) -> None:
    theirs, _ = render_jinja_template([TURNS], chat_template=source)
    assert render_template(source, {"messages": TURNS}) == theirs[0]


@pytest.mark.parametrize("name", UNSOUND)
def test_what_never_ends_or_takes_all_memory_is_an_error_of_the_template(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 200_000)
    monkeypatch.setattr(sandbox, "MAX_VALUES", 50_000)
    monkeypatch.setattr(sandbox, "MAX_MADE", 2**26)
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(DataError, match="f:1: the chat template refuses this conversation: "):
        ChatTemplate(tiny.build_tokenizer(chat_template=UNSOUND[name])).render(TURNS, "f:1")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begun < 8 and peak < 2**29


def test_the_clock_ends_what_takes_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.2)
    slow = "{% set r = range(20000) | list %}{% for i in r %}{% if (i + 1.5) in r %}{% endif %}{% endfor %}"
    begun = time.monotonic()
    with pytest.raises(TemplateLimit, match=r"longer than 0\.2 seconds"):
        render_template(slow, {})
    assert time.monotonic() - begun < 5


def test_the_clock_of_a_template_shows_the_day_that_it_is_given() -> None:
    tokenizer = tiny.build_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }} {{ mood }}")
    settings_ = TemplateSettings({"mood": "calm"}, date(2024, 2, 29))
    assert ChatTemplate(tokenizer, settings_).render(TURNS, "f:1") == "29 Feb 2024 calm"


TOKENIZER = tiny.build_tokenizer()
PIECES = st.sampled_from(
    [
        "{% for a in messages %}",
        "{% endfor %}",
        "{{ a ~ a }}",
        "{% set x = [x, x] %}",
        "{{ x * 99999 }}",
        "{% if x %}",
        "{% endif %}",
        "{{ messages | tojson }}",
        "{{ a.b.c }}",
        "{{ '%9999d' % 3 }}",
        "{% macro m() %}",
        "{% endmacro %}",
        "{{ m() }}",
        "{{ x ** x }}",
        "é",
        "{{",
        "}}",
        "{{ range(999) | list | join(x) }}",
        "{%",
        "%}",
        "\x00",
        "\ud800",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_as_a_template_gives_a_text_or_an_error_of_ours(source: str) -> None:
    TOKENIZER.chat_template = source or "x"
    with contextlib.suppress(DataError):
        ChatTemplate(TOKENIZER).render(TURNS, "f:1").encode()
