from __future__ import annotations

import json
import re
from typing import Any

import pytest

from limbeck.export.ollama import find_frames, modelfile
from tests import tiny

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful \"AI\" assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
COUNTING = "{% for message in messages %}{{ loop.index }}. {{ message['content'] }}\n{% endfor %}"
TALK = [
    {"role": "user", "content": "What is {{ .Role }}?"},
    {"role": "assistant", "content": 'A "word"\nof \\ ours.'},
    {"role": "user", "content": "Thanks"},
]


def tokenizer(template: str | None) -> Any:
    made = tiny.build_tokenizer(chat_template=template)
    made.bos_token = "<|bos|>"
    return made


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the part of its language that is used: range, if, else if, end, strings, fields.
    `{{-` eats the spaces of text before it, of which there are none."""
    tokens = re.findall(r"\{\{-? ?((?:\"(?:\\.|[^\"\\])*\"|[^\"}])*?) ?\}\}|([^{]+)", template)
    assert all(not text for _, text in tokens), "all text stands in strings"
    words = [word for word, _ in tokens]
    assert words[0] == "range .Messages" and words.count("end") == 2
    behind = len(words) - words[::-1].index("end")

    def show(word: str, message: dict[str, str]) -> str:
        return message["content"] if word == ".Content" else json.loads(word)

    out = ""
    for message in messages:
        chosen, taken = False, False
        for word in words[1 : behind - 1]:
            if condition := re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', word):
                chosen = not taken and message["role"] == condition[1]
                taken = taken or chosen
            elif word != "end" and chosen:
                out += show(word, message)
    return out + "".join(json.loads(word) for word in words[behind:])


def parts_of(text: str) -> tuple[str, str]:
    """The template and the system message of a Modelfile."""
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.M | re.S)
    system = re.search(r'^SYSTEM (?:"""(.*?)"""|"(.*?)")$', text, re.M | re.S)
    assert template
    return template[1], (system[1] or system[2]) if system else ""


@pytest.mark.parametrize(
    ("template", "bos", "system"),
    [
        (tiny.CHATML, "", ""),
        (SMOLLM, "", 'You are a helpful "AI" assistant.'),
        (LLAMA3, "<|bos|>", ""),
        (GEMMA, "<|bos|>", ""),
    ],
)
def test_ollamas_template_makes_the_same_text(template: str, bos: str, system: str) -> None:
    speaker = tokenizer(template)
    text = modelfile("./model.gguf", speaker, ["<|im_end|>"], bos=bos, settings={})
    go, found = parts_of(text)
    assert found == system
    talks = [TALK[:1], TALK, [{"role": "system", "content": "Be kind."}, *TALK]]
    for talk in talks[: 2 if template is GEMMA else 3]:
        theirs = speaker.apply_chat_template(talk, tokenize=False, add_generation_prompt=True).removeprefix(bos)
        with_system = (
            talk if talk[0]["role"] == "system" or not found else [{"role": "system", "content": found}, *talk]
        )
        assert run_go(go, with_system) == theirs


@pytest.mark.parametrize("template", [MISTRAL, COUNTING, None])
def test_templates_that_are_no_frames_are_left_to_ollama(template: str | None) -> None:
    speaker = tokenizer(template)
    assert find_frames(speaker) is None
    text = modelfile("./model.gguf", speaker, ["</s>"], settings={})
    assert "TEMPLATE" not in text and ("# The chat template" in text) == (template is not None)


def test_a_modelfile_line_by_line() -> None:
    text = modelfile(
        "./model.gguf",
        tokenizer(None),
        ["<|im_end|>", 'a"b'],
        settings={"repeat_penalty": 1.0, "top_p": 0.9},
        licence="mit",
    )
    assert text.splitlines() == [
        "FROM ./model.gguf",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop """a"b"""',
        "PARAMETER repeat_penalty 1",
        "PARAMETER top_p 0.9",
        'LICENSE "mit"',
    ]
