"""Replies are found in the structures of model families that are in use.

Each template is a short one of our own with the turns, tokens and habits of its family. The part of an assistant is set
in brackets by hand, and a second algorithm reads them: transformers' own mask of what a model generates. Ours sees the
template without brackets, and must find the same. Families without an end token end a reply by what they write behind.
"""

# ruff: noqa: RUF001  # one family has such bars in its tokens

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from limbeck.text.chat_template import ChatTemplate, TemplateSettings
from tests import tiny

Turns = list[dict[str, Any]]

C = "{{ m.content }}"
STRIPPED = "{{ m.content | trim }}"
CALLS = "{% if m.tool_calls %}{% for c in m.tool_calls %}(){% endfor %}{% endif %}"
NAME = "{{ c.function.name }}"
ARGS = "{{ c.function.arguments | tojson }}"
LAST = "{% if loop.last %}"
ELSE, FI = "{% else %}", "{% endif %}"


class Family(NamedTuple):
    """`reply` is what a template writes for an assistant's turn, its supervised part in brackets; `asks` is the prompt
    for one; `first` stands before all turns, `always` behind them. `ends` are the tokens of which one ends a reply."""

    name: str
    tokens: str
    user: str
    reply: str
    asks: str
    ends: str
    first: str = ""
    tool: str = ""
    always: str = ""
    values: dict[str, Any] = {}  # noqa: RUF012  # never changed

    @property
    def template(self) -> str:
        tool = "{% elif m.role == 'tool' %}" + self.tool if self.tool else ""
        return (
            f"{self.first}{{% for m in messages %}}{{% if m.role == 'user' %}}{self.user}{tool}{{% else %}}{self.reply}"
            f"{{% endif %}}{{% endfor %}}{self.always}{{% if add_generation_prompt %}}{self.asks}{{% endif %}}"
        )


def calls(each: str) -> str:
    return CALLS.replace("()", each)


def chatml(name: str, reply: str = f"[[{C}<|im_end|>]]\n", **more: Any) -> Family:
    head = "<|im_start|>assistant\n"
    given: dict[str, Any] = {"tokens": "<|im_start|> <|im_end|>", "ends": "<|im_end|>", "asks": head} | more
    return Family(name, user=f"<|im_start|>user\n{C}<|im_end|>\n", reply=head + reply, **given)


HERMES = calls(f'\n<tool_call>\n{{"name": "{NAME}", "arguments": {ARGS}}}\n</tool_call>')
RESULT = f"<|im_start|>user\n<tool_response>\n{C}\n</tool_response><|im_end|>\n"
ANSWER = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
EMPTY = "<think>\n\n</think>\n\n"
L3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
L3_TOKENS = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
DAY = "<|begin_of_text|>" + L3.format("system") + "Today Date: {{ strftime_now('%d %b %Y') }}<|eot_id|>"
DEEP = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
DEEP_CALLS = " <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> <｜tool▁calls▁end｜>"
DEEP_CALL = (
    "{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    f"{NAME}\n```json\n{ARGS}\n```<｜tool▁call▁end｜>{{% endfor %}}<｜tool▁calls▁end｜>{{% endif %}}"
)
RESPONSE = "<|START_OF_TURN_TOKEN|>"
HARMONY = (
    f"{{% if m.tool_calls %}}<|start|>assistant[[<|channel|>analysis<|message|>{C}<|end|><|start|>assistant "
    "to=functions.{{ m.tool_calls[0].function.name }}<|channel|>commentary json<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>]]{% else %}<|start|>assistant"
    f"[[<|channel|>final<|message|>{C}{LAST}<|return|>{ELSE}<|end|>{FI}]]{FI}"
)

FAMILIES = [
    Family("llama2", "<s> </s>", f"<s>[INST] {C} [/INST]", f"[[ {STRIPPED} </s>]]", "", "</s>"),
    Family(
        "llama3.1-dated",
        L3_TOKENS,
        L3.format("user") + f"{STRIPPED}<|eot_id|>",
        L3.format("assistant") + f"[[{STRIPPED}<|eot_id|>]]",
        L3.format("assistant"),
        "<|eot_id|>",
        first=DAY,
    ),
    Family(
        "llama3.3-calls",
        L3_TOKENS,
        L3.format("user") + f"{C}<|eot_id|>",
        L3.format("assistant") + f"[[{C}" + calls(f'{{"name": "{NAME}", "parameters": {ARGS}}}') + "<|eot_id|>]]",
        L3.format("assistant"),
        "<|eot_id|>",
        first="<|begin_of_text|>",
        tool=L3.format("ipython") + f"{C}<|eot_id|>",
    ),
    chatml("qwen2.5", f"[[{C}{HERMES}<|im_end|>]]\n", tool=RESULT, first="<|im_start|>system\nBe kind.<|im_end|>\n"),
    chatml("hermes", f"[[{C}{HERMES}<|im_end|>]]\n", tool=f"<|im_start|>tool\n{C}<|im_end|>\n"),
    chatml("qwen3", f"[[{LAST}{EMPTY}{FI}{C}{HERMES}<|im_end|>]]\n", tool=RESULT),
    chatml(
        "qwen3-without-thinking",
        f"{LAST}{EMPTY}{FI}[[{C}{HERMES}<|im_end|>]]\n",
        tool=RESULT,
        asks="<|im_start|>assistant\n{% if enable_thinking is false %}" + EMPTY + FI,
        values={"enable_thinking": False},
    ),
    chatml("qwq", f"[[{ANSWER}{HERMES}<|im_end|>]]\n", tool=RESULT, asks="<|im_start|>assistant\n<think>\n"),
    chatml("smollm2", first="<|im_start|>system\nYou are SmolLM.<|im_end|>\n"),
    chatml(
        "smollm3-no-think",
        f"{EMPTY}[[{C}<|im_end|>]]\n",
        asks=f"<|im_start|>assistant\n{EMPTY}",
    ),
    chatml("yi"),
    chatml("internlm2.5", first="<s>", tokens="<s> <|im_start|> <|im_end|>"),
    chatml(
        "lfm2",
        "[[" + C + "{% if m.tool_calls %}<|tool_call_start|>[{{ m.tool_calls[0].function.name }}()]<|tool_call_end|>"
        "{% endif %}<|im_end|>]]\n",
        first="<|startoftext|>",
        tokens="<|startoftext|> <|im_start|> <|im_end|> <|tool_call_start|> <|tool_call_end|>",
        tool=f"<|im_start|>tool\n{C}<|im_end|>\n",
    ),
    Family(
        "deepseek-v3",
        DEEP + DEEP_CALLS,
        f"<｜User｜>{C}",
        f"<｜Assistant｜>[[{C}{DEEP_CALL}<｜end▁of▁sentence｜>]]",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        first="<｜begin▁of▁sentence｜>",
        tool=f"<｜User｜>{C}",
    ),
    Family(
        "deepseek-r1-distil",
        DEEP,
        f"<｜User｜>{C}",
        f"<｜Assistant｜>[[{ANSWER}<｜end▁of▁sentence｜>]]",
        "<｜Assistant｜><think>\n",
        "<｜end▁of▁sentence｜>",
        first="<｜begin▁of▁sentence｜>",
    ),
    Family("mistral-v1", "<s> </s>", f"[INST] {C} [/INST]", f"[[{C}</s>]] ", "", "</s>", first="<s>"),
    Family(
        "mistral-v3",
        "<s> </s> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        f"[INST] {C}[/INST]",
        f"[[ {C}" + calls(f'[TOOL_CALLS] [{{"name": "{NAME}", "arguments": {ARGS}}}]') + "</s>]]",
        "",
        "</s>",
        first="<s>",
        tool=f"[TOOL_RESULTS] {C}[/TOOL_RESULTS]",
    ),
    Family(
        "mistral-v7",
        "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        f"[INST]{C}[/INST]",
        f"[[{C}" + calls(f'[TOOL_CALLS] [{{"name": "{NAME}", "arguments": {ARGS}}}]') + "</s>]]",
        "",
        "</s>",
        first="<s>[SYSTEM_PROMPT]It is {{ strftime_now('%Y-%m-%d') }}.[/SYSTEM_PROMPT]",
        tool=f"[TOOL_RESULTS]{C}[/TOOL_RESULTS]",
    ),
    Family(
        "gemma",
        "<bos> <start_of_turn> <end_of_turn>",
        f"<start_of_turn>user\n{STRIPPED}<end_of_turn>\n",
        f"<start_of_turn>model\n[[{STRIPPED}<end_of_turn>]]\n",
        "<start_of_turn>model\n",
        "<end_of_turn>",
        first="<bos>{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
    ),
    Family(
        "phi-3",
        "<|user|> <|assistant|> <|end|> <|endoftext|>",
        f"<|user|>\n{C}<|end|>\n",
        f"<|assistant|>\n[[{C}<|end|>]]\n",
        "<|assistant|>\n{% else %}<|endoftext|>",
        "<|end|>",
    ),
    Family(
        "phi-4",
        "<|im_start|> <|im_sep|> <|im_end|>",
        f"<|im_start|>user<|im_sep|>{C}<|im_end|>",
        f"<|im_start|>assistant<|im_sep|>[[{C}<|im_end|>]]",
        "<|im_start|>assistant<|im_sep|>",
        "<|im_end|>",
    ),
    Family(
        "command-r7b",
        f"<BOS_TOKEN> {RESPONSE} <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
        "<|START_RESPONSE|> <|END_RESPONSE|>",
        f"{RESPONSE}<|USER_TOKEN|>{C}<|END_OF_TURN_TOKEN|>",
        f"{RESPONSE}<|CHATBOT_TOKEN|>[[<|START_RESPONSE|>{C}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>]]",
        "",
        "<|END_OF_TURN_TOKEN|>",
        first="<BOS_TOKEN>",
        always=f"{RESPONSE}<|CHATBOT_TOKEN|>",
    ),
    Family(
        "glm-4",
        "[gMASK] <sop> <|user|> <|assistant|>",
        f"<|user|>\n{C}",
        f"<|assistant|>[[\n{C}]]",
        "<|assistant|>",
        "",
        first="[gMASK]<sop>",
    ),
    Family(
        "chatglm3",
        "[gMASK] <sop> <|user|> <|assistant|>",
        f"<|user|>\n {C}",
        f"<|assistant|>[[\n {C}]]",
        "<|assistant|>",
        "",
        first="[gMASK]<sop>",
    ),
    Family(
        "minimax-m2",
        "]~!b[ ]~b] [e~[",
        f"]~b]user\n{C}[e~[\n",
        f"]~b]ai\n[[{ANSWER}"
        + calls(f'\n<minimax:tool_call>\n<invoke name="{NAME}">\n</invoke>\n</minimax:tool_call>')
        + "[e~[]]\n",
        "]~b]ai\n<think>\n",
        "[e~[",
        first="]~!b[]~b]system\nBe kind.[e~[\n",
        tool=f"]~b]tool\n<response>{C}</response>[e~[\n",
    ),
    Family(
        "nemotron-nano",
        "<SPECIAL_10> <SPECIAL_11> <SPECIAL_12>",
        f"<SPECIAL_11>User\n{STRIPPED}\n",
        f"<SPECIAL_11>Assistant\n{LAST}<think></think>{FI}[[{STRIPPED}"
        + calls(f'\n\n<TOOLCALL>[{{"name": "{NAME}", "arguments": {ARGS}}}]</TOOLCALL>')
        + "\n<SPECIAL_12>]]\n\n",
        "<SPECIAL_11>Assistant\n<think></think>",
        "<SPECIAL_12>",
        first="<SPECIAL_10>System\n\n\n",
        tool=f"<SPECIAL_11>User\n<TOOL_RESPONSE>[{C}]</TOOL_RESPONSE>\n\n",
    ),
    Family(
        "gpt-oss",
        "<|start|> <|message|> <|channel|> <|end|> <|return|> <|call|>",
        f"<|start|>user<|message|>{C}<|end|>",
        HARMONY,
        "<|start|>assistant",
        "<|end|> <|return|> <|call|>",
        first="<|start|>system<|message|>Reasoning: low<|end|>",
        tool=f"<|start|>functions.f to=assistant<|channel|>commentary<|message|>{C}<|end|>",
    ),
    Family(
        "kimi-k2",
        "<|im_system|> <|im_user|> <|im_assistant|> <|im_middle|> <|im_end|> <|tool_calls_section_begin|> "
        "<|tool_calls_section_end|>",
        f"<|im_user|>user<|im_middle|>{C}<|im_end|>",
        f"<|im_assistant|>assistant<|im_middle|>[[{C}"
        + calls(f"<|tool_calls_section_begin|>{NAME}{ARGS}<|tool_calls_section_end|>")
        + "<|im_end|>]]",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
        first="<|im_system|>system<|im_middle|>Be kind.<|im_end|>",
        tool=f"<|im_system|>tool<|im_middle|>{C}<|im_end|>",
    ),
    Family(
        "granite-3",
        "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|>",
        f"<|start_of_role|>user<|end_of_role|>{C}<|end_of_text|>\n",
        f"<|start_of_role|>assistant<|end_of_role|>[[{C}" + calls(f"<|tool_call|>{NAME}{ARGS}") + "<|end_of_text|>]]\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>",
        tool=f"<|start_of_role|>tool<|end_of_role|>{C}<|end_of_text|>\n",
    ),
    Family(
        "olmo-2",
        "<|endoftext|>",
        f"<|user|>\n{C}\n",
        f"<|assistant|>\n[[{C}<|endoftext|>]]{LAST}{ELSE}\n{FI}",
        "<|assistant|>\n",
        "<|endoftext|>",
        first="<|endoftext|>",
    ),
    Family("falcon", "<|endoftext|>", f"User: {C}\n\n", f"Falcon:[[ {C}\n\n]]", "Falcon:", ""),
    Family("zephyr", "<s> </s>", f"<|user|>\n{C}</s>\n", f"<|assistant|>\n[[{C}</s>]]\n", "<|assistant|>\n", "</s>"),
    Family("vicuna", "<s> </s>", f"USER: {C} ", f"ASSISTANT:[[ {C}</s>]]", "ASSISTANT:", "</s>", first="<s>A chat. "),
    Family(
        "alpaca",
        "<s> </s>",
        f"### Instruction:\n{C}\n\n",
        f"### Response:\n[[{C}</s>]]\n\n",
        "### Response:\n",
        "</s>",
        first="<s>Below is a task.\n\n",
    ),
]


def ask(content: str = "Is it?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def say(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


CALLED_F = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL: dict[str, Any] = {**say("Look."), "tool_calls": [CALLED_F]}
WORDS = ("assistant", "final", "user", "model", "</tool_call>")
TALKS: dict[str, Turns] = {
    "one turn": [ask(), say("Yes, it is.")],
    "three turns": [ask(), say("Yes."), ask("Why?"), say("So."), ask("So?"), say("Yes.")],
    "spaces inside": [ask("a\n\nb"), say("One.\n\nTwo."), ask(), say("c  d")],
    **{f"only {word}": [ask(word), say(word), ask(word), say(word)] for word in WORDS},
}
CALLED: dict[str, Turns] = {
    "a call at the end": [ask(), CALL],
    "a call and its result": [ask(), CALL, {"role": "tool", "content": "7"}, say("Seven.")],
    "a silent call": [ask(), {**CALL, "content": ""}],
    "a silent call and its result": [ask(), {**CALL, "content": ""}, {"role": "tool", "content": "7"}, say("Seven.")],
    "an answer, then a call": [ask(), say("Yes."), ask(), CALL],
}
CASES = [
    pytest.param(family, turns, id=f"{family.name}-{name}")
    for family in FAMILIES
    for name, turns in (TALKS | (CALLED if family.tool else {})).items()
]


def ours(family: Family) -> ChatTemplate:
    template = family.template.replace("[[", "").replace("]]", "")
    tokenizer = tiny.build_tokenizer(chat_template=template)
    tokenizer.add_tokens(family.tokens.split(), special_tokens=True)
    return ChatTemplate(tokenizer, TemplateSettings(family.values))


def oracle(family: Family, turns: Turns) -> tuple[str, list[str]]:
    template = family.template.replace("[[", "{%+ generation +%}").replace("]]", "{%+ endgeneration +%}")
    given: dict[str, Any] = {"conversations": [turns], "chat_template": template, **family.values}
    found: Any = render_jinja_template(return_assistant_tokens_mask=True, **given)
    (text,), (places,) = found
    return text, [text[start:end] for start, end in places]


@pytest.mark.parametrize(("family", "turns"), CASES)
def test_the_reply_is_what_the_hand_marked(family: Family, turns: Turns) -> None:
    text, spans = ours(family).conversation(turns, "f:1")
    found = [text[start:end] for start, end in spans]
    assert (text, found) == oracle(family, turns)
    assert all(reply.endswith(tuple(family.ends.split())) for reply in found if family.ends)
