from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import AddedToken

from limbeck.errors import DataError, EmptyRow, TeacherError, UnsupervisedRow
from limbeck.text import sandbox
from limbeck.text.chat_template import ChatTemplate, compare_templates
from limbeck.text.reply_spans import common_prefix
from tests import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ASK, SAY = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Fine, thanks."}
AGAIN, BYE = {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Still fine."}

SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# An end of turn and, once, an end of text behind the last turn (Phi 3).
CLOSED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|pad|>' }}{% endif %}"
)
# The last reply is rendered with an empty thought, earlier ones without (Qwen 3).
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The reasoning is left out of replies (DeepSeek-R1's template), or of those before the last turn (Qwen 3's).
THOUGHTLESS = CLOSED.replace("m.content", "m.content.split('</think>')[-1]")
FORGETFUL = CLOSED.replace("m.content", "(m.content if loop.last else m.content.split('</think>')[-1])")
# The reasoning is kept in lines of its own (Qwen 3).
OWN_LINES = CLOSED.replace(
    "m.content",
    "(('<think>\n' + m.content.split('</think>')[0].split('<think>')[-1].strip('\n') + '\n</think>\n\n'"
    " + m.content.split('</think>')[-1].lstrip('\n')) if '</think>' in m.content else m.content)",
)
TRIMMED = CLOSED.replace("m.content", "(m.content | trim)")
BARE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# No end of turn: the next turn's header ends it.
HEADERS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_USER = (
    "{% for m in messages %}{% if loop.last %}{{ 'Be brief. ' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
)


def template(text: str | None) -> ChatTemplate:
    return ChatTemplate(tiny.build_tokenizer(chat_template=text))


def replies(text: str, messages: list[dict[str, str]]) -> list[str]:
    rendered, spans = template(text).conversation(messages, "f:1")
    return [rendered[start:end] for start, end in spans]


@pytest.mark.parametrize("text", [tiny.CHATML, SYSTEM, CLOSED])
def test_each_assistant_turn_is_found_with_its_end_token(text: str) -> None:
    assert replies(text, [ASK, SAY, AGAIN, BYE]) == ["Fine, thanks.<|im_end|>", "Still fine.<|im_end|>"]
    assert replies(text, [ASK, SAY, AGAIN]) == ["Fine, thanks.<|im_end|>"]


def test_thought_of_the_last_turn_only_belongs_to_it() -> None:
    found = replies(THINKING, [ASK, SAY, AGAIN, BYE])
    assert found == ["Fine, thanks.<|im_end|>", "<think>\n\n</think>\n\nStill fine.<|im_end|>"]


def test_trimmed_content_is_found() -> None:
    spaced = {"role": "assistant", "content": "  Fine, thanks. \n"}
    assert replies(TRIMMED, [ASK, spaced]) == ["Fine, thanks.<|im_end|>"]


def test_without_end_token_the_turns_own_text_is_the_reply() -> None:
    assert replies(BARE, [ASK, SAY, AGAIN, BYE]) == ["Fine, thanks.\n", "Still fine.\n"]
    assert replies(HEADERS, [ASK, SAY, AGAIN, BYE]) == ["Fine, thanks.", "Still fine."]


def test_a_reply_that_looks_like_the_prompt_is_not_confused_with_it() -> None:
    assert replies(SYSTEM, [ASK, {"role": "assistant", "content": "user"}]) == ["user<|im_end|>"]
    rendered, ((start, _),) = template(SYSTEM).conversation([ASK, {"role": "assistant", "content": "Hello?"}], "f:1")
    assert start > rendered.index("Hello?")


def test_tool_calls_without_content() -> None:
    text = tiny.CHATML.replace("message['content']", "(message['content'] or 'CALL')")
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    answer = {"role": "tool", "content": "42"}
    assert replies(text, [ASK, call, answer, SAY]) == ["CALL<|im_end|>", "Fine, thanks.<|im_end|>"]


def test_prompt_ends_where_the_reply_begins() -> None:
    one = template(SYSTEM)
    rendered, spans = one.conversation([ASK, SAY, AGAIN, BYE], "f:1")
    assert one.prompt([ASK, SAY, AGAIN, BYE], "f:1") == rendered[: spans[-1][0]]
    assert one.prompt([ASK, SAY, AGAIN], "f:1") == rendered[: spans[-1][0]]


def test_a_template_that_moves_text_is_refused_by_row() -> None:
    with pytest.raises(DataError, match=r"f:1: the chat template renders the first 1 turns differently"):
        template(LAST_USER).conversation([ASK, SAY], "f:1")


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], EmptyRow, "the conversation is empty"),
        ([ASK, {"role": "assistant", "content": " "}], EmptyRow, "turn 2 is empty"),
        ([ASK], UnsupervisedRow, "no assistant turn"),
        ([SAY], DataError, "begins with an assistant turn"),
        ([{"role": "user"}, SAY], DataError, "turn 1 is {'role': 'user'}; a turn must have"),
        ([{"content": "x"}, SAY], DataError, "turn 1 is"),
        ([{"role": "user", "content": ["x"]}, SAY], DataError, "both text"),
        ([ASK, {"role": "assistant", "content": "a<|im_end|>b"}], DataError, r"control token '<\|im_end\|>'"),
    ],
)
def test_malformed_conversations(messages: list[dict[str, str]], error: type[DataError], message: str) -> None:
    with pytest.raises(error, match=f"f:7: .*{message}"):
        template(SYSTEM).conversation(messages, "f:7")


def test_reasoning_that_the_template_drops_is_not_lost_in_silence() -> None:
    thought = {"role": "assistant", "content": "<think>I am asked how I am.</think>Fine, thanks."}
    with pytest.raises(DataError, match="f:7: the chat template drops the reasoning of the last turn"):
        template(THOUGHTLESS).conversation([ASK, thought], "f:7")
    assert "I am asked" in replies(FORGETFUL, [ASK, thought])[0]
    assert replies(FORGETFUL, [ASK, thought, AGAIN, BYE]) == ["Fine, thanks.<|im_end|>", "Still fine.<|im_end|>"]
    assert "I am asked" in replies(TRIMMED, [ASK, thought])[0]
    assert replies(OWN_LINES, [ASK, thought]) == ["<think>\nI am asked how I am.\n</think>\n\nFine, thanks.<|im_end|>"]


def test_templates_are_compared_by_what_they_write() -> None:
    other = CLOSED.replace("{% for m in messages %}", "{% for m in messages -%}")
    assert compare_templates(template(CLOSED), template(other)) is None
    parting = compare_templates(template(CLOSED), template(THOUGHTLESS))
    assert parting is not None and parting.startswith("after '") and "'<think>" in parting
    assert compare_templates(template(CLOSED), template(None)) is not None


def test_prompt_needs_a_turn_to_reply_to() -> None:
    with pytest.raises(DataError, match="no turn to reply to"):
        template(SYSTEM).prompt([SAY], "f:7")


def test_what_the_template_raises_names_the_row() -> None:
    text = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(DataError, match="f:3: the chat template refuses this conversation: Roles must alternate"):
        template(text).conversation([ASK, SAY], "f:3")


def test_rendered_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_RENDERED", 1000)
    with pytest.raises(DataError, match="f:3: the chat template refuses .* of 2,000 characters; allowed are 1,000"):
        template("{{ 'x' * 2000 }}").render([ASK], "f:3")


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(TeacherError, match=r"no chat template .* data.chat_template=false"):
        template(None).conversation([ASK, SAY], "f:1")


def test_longest_special_token_is_matched(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|><|pad|>", special=True), AddedToken("<think>", special=False)])
    special = ChatTemplate(tokenizer).special
    found = special.search("a<think><|im_end|><|pad|>")
    assert found is not None and found[0] == "<|im_end|><|pad|>"
    assert ChatTemplate(tiny_tokenizer).special.search("<think>") is None


def test_common_prefix() -> None:
    assert [common_prefix(*pair) for pair in [("", "a"), ("abc", "abd"), ("abc", "abcd"), ("x", "y")]] == [0, 2, 3, 0]
