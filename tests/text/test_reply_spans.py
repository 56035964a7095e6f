"""Replies are found by where they stand: prompts that open the reasoning, channels, calls beside words."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.text.chat_template import ChatTemplate
from tests import tiny

ASK = {"role": "user", "content": "a?"}
CALL = {"role": "assistant", "content": "Look.", "tool_calls": [{"function": {"name": "f"}}]}
OPENED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}<|pad|>"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|pad|><think>\n{% endif %}"
)
CHANNEL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}<|pad|>final{% endif %}"
    "{{ m.content }}{{ '<|im_end|>' if loop.last and m.role == 'assistant' else '<|pad|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
CALLING = tiny.CHATML.replace(
    "message['content'] +", "message['content'] + ('<|pad|>CALL' if message.tool_calls else '') +"
)


def say(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("template", "turns", "learnt"),
    [
        (OPENED, [ASK, say("Four.")], ["Four.<|im_end|>"]),
        (OPENED, [ASK, say("<think>\ntwo\n</think>\n\nFour.")], ["two\n</think>\n\nFour.<|im_end|>"]),
        (CHANNEL, [say("n") | ASK, say("a")], ["<|pad|>finala<|im_end|>"]),
        (CHANNEL, [ASK, say("final"), ASK, say("n")], ["<|pad|>finalfinal<|pad|>", "<|pad|>finaln<|im_end|>"]),
        (CALLING, [ASK, CALL], ["Look.<|pad|>CALL<|im_end|>"]),
        (CALLING, [ASK, CALL, ASK, say("b")], ["Look.<|pad|>CALL<|im_end|>", "b<|im_end|>"]),
    ],
)
def test_what_is_learnt(template: str, turns: list[dict[str, Any]], learnt: list[str]) -> None:
    text, spans = ChatTemplate(tiny.build_tokenizer(chat_template=template)).conversation(turns, "f:1")
    assert [text[start:end] for start, end in spans] == learnt
