"""What a row is made of besides its words: tools, nulls of Parquet, half characters, the day, prompts of others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import read_rows
from limbeck.data.build import DataSummary, run_data
from limbeck.data.columns import Columns
from limbeck.data.files import find_files, read_file
from limbeck.data.prompts import prompt_id
from limbeck.errors import DataError, LimbeckError
from limbeck.system.rundir import RunDir
from limbeck.text.encode import Encoder, Example
from tests import tiny
from tests.recipes import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from limbeck.types import Row

CALLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content or '' }}{% for t in m.tool_calls or [] %}<tool>{{ t.function | tojson }}</tool>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + tiny.CHATML


def make(folder: Path, rows: Any, template: str, *overrides: str) -> tuple[list[Row], DataSummary]:
    file = folder / "d.jsonl"
    if isinstance(rows, pa.Table):
        file = folder / "d.parquet"
        pq.write_table(rows, file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"data.source={{kind: files, path: {file}}}"
    recipe = tiny_recipe(source, "data.holdout=0.3", *overrides)
    tokenizer = tiny.build_tokenizer(chat_template=template)
    found = run_data(recipe, RunDir(folder / "run"), tokenizer, max_context=None, on_progress=lambda _: None)
    return read_rows(folder / "run" / "data" / "rows.parquet"), found


def call(number: int, **arguments: Any) -> dict[str, Any]:
    function = {"name": "find", "arguments": arguments}
    turns = [
        {"role": "user", "content": f"find {number}"},
        {"role": "assistant", "tool_calls": [{"function": function}]},
    ]
    return {"messages": turns}


def test_tools_beside_messages_reach_the_template(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    rows = [{**call(n, city="Oslo"), "tools": json.dumps(tools) if n % 2 else tools} for n in range(20)]
    found, _ = make(tmp_path, rows, CALLS)
    assert all(row.text.startswith(json.dumps(tools)) for row in found)


def test_arguments_of_other_calls_are_not_learnt_as_nulls(tmp_path: Path) -> None:
    rows = [call(n, city="Oslo") if n % 2 else call(n, a=n) for n in range(20)]
    found, _ = make(tmp_path, pa.Table.from_pylist(rows), CALLS)
    assert found and not any("null" in row.text for row in found)


def test_half_a_character_anywhere_is_a_bad_row(tmp_path: Path) -> None:
    rows = [call(n, city="Oslo") for n in range(20)] + [call(99, city=["\ud83d"])]
    with pytest.raises(DataError, match=r"d\.jsonl:21: .* not valid text"):
        make(tmp_path, rows, CALLS)
    found, summary = make(tmp_path, rows, CALLS, "data.bad_rows=skip")
    assert len(found) == 20 and summary.bad == 1


def test_a_row_that_is_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    rows = [call(n, city="Oslo") for n in range(20)] + [call(99, city=deep)]
    found, summary = make(tmp_path, rows, CALLS, "data.bad_rows=skip")
    assert len(found) >= 20 and len(found) + summary.bad == 21


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a b"]), pa.array(["c"])], names=["text", "text"]), file)
    with pytest.raises(DataError, match="has the column 'text' twice"):
        list(read_file(file, Columns(), print))


def test_rows_are_the_same_on_every_day_and_the_recipe_may_name_one(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"{n}"} for n in range(40)]
    found, _ = make(tmp_path, rows, DATED)
    assert all(row.text.startswith("01 Jan 2026\n") for row in found)
    found, _ = make(tmp_path, rows, DATED, "data.template_date=2024-07-26")
    assert all(row.text.startswith("26 Jul 2024\n") for row in found)


def test_held_out_rows_share_no_prompt_with_those_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n // 3} ", "completion": f"reply {n}"} for n in range(120)]
    rows += [{"prompt": f"Tell {n}", "completion": "once"} for n in range(60)]
    found, _ = make(tmp_path, rows, tiny.CHATML)
    prompts = {split: {row.messages for row in found if row.split == split} for split in ("train", "heldout")}
    assert prompts["train"] and prompts["heldout"] and not prompts["train"] & prompts["heldout"]
    alone, _ = make(tmp_path, rows[120:], tiny.CHATML)  # others' prompts do not move a row
    sides = {row.id: row.split for row in found}
    assert all(sides[row.id] == row.split for row in alone)


def test_a_student_that_would_never_stop_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"{n}"} for n in range(40)]
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    _, summary = make(tmp_path, rows, endless)
    assert summary.ended == 0 and "never learn to end a reply" in summary.warnings[0]
    _, summary = make(tmp_path, rows, tiny.CHATML)
    assert summary.ended == summary.replies == 40 and not summary.warnings


def test_rows_that_were_cut_say_nothing_of_how_replies_end(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tiny_tokenizer, max_length=16, long_rows="truncate", chat_template=False, need_reply=True)
    short, long = (encoder.encode(Example(text)) for text in ("a few words", "many words " * 40))
    assert encoder.count_ends(short) == (1, 1)
    assert long.truncated and encoder.count_ends(long) == (0, 0)


def test_the_prompt_of_a_conversation_is_what_precedes_its_first_reply() -> None:
    ask, say = {"role": "user", "content": "a "}, {"role": "assistant", "content": "b"}
    same = [Example(prompt="a", completion="c"), Example(messages=[ask, say]), Example(messages=[ask, say, ask, say])]
    assert len({prompt_id(example) for example in same}) == 1 and prompt_id(Example(text="a")) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\ud83d", "role"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "prompt", "completion", "messages", "tools"]), VALUES, max_size=4))
def test_any_row_of_json_is_read_or_refused_in_our_words(tmp_path_factory: Any, row: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_text(json.dumps(row) + "\n")
    refused: list[str] = []
    try:
        read = list(read_file(file, Columns(), refused.append))
    except LimbeckError:
        return
    assert len(read) + len(refused) == 1


def test_extensions_in_capitals_are_read_and_packed_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text('{"text": "a"}\n')
    assert [file.name for file in find_files(str(tmp_path))] == ["A.JSONL"]
    (tmp_path / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unpack it"):
        find_files(str(tmp_path / "b.jsonl.gz"))
