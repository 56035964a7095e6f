"""The first rows, read and encoded on the same road as the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.check.findings import Fact, Finding
from limbeck.config.problems import Problem, problem
from limbeck.errors import DataError, LongRow
from limbeck.recipe import GenerateMode
from limbeck.text.encode import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.check.opened import Opened
    from limbeck.recipe import Recipe
    from limbeck.text.encode import Encoded


def template_exists(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    if _lacks_template(recipe, opened):
        yield problem(
            "data.source",
            f"has chat rows, but the tokenizer of {recipe.reader[0]} has no chat template (a base model?). "
            "Choose an instruct model, or join prompt and completion as plain text: data.chat_template=false.",
        )


def _lacks_template(recipe: Recipe, opened: Opened) -> bool:
    chats = any(
        example.messages is not None or (example.prompt is not None and recipe.data.chat_template)
        for example in opened.examples
    )
    return chats and opened.reader.tokenizer.chat_template is None


def first_rows_encode(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """Tokens of each, and how many of them are supervised."""
    if _lacks_template(recipe, opened):
        return
    data, generates = recipe.data, isinstance(recipe.trace.mode, GenerateMode)
    encoder = Encoder(
        opened.reader.tokenizer,
        max_length=data.max_length,
        long_rows=data.long_rows,
        chat_template=data.chat_template,
        need_reply=not generates,
    )
    for example in opened.examples:
        try:
            row = encoder.encode(example)
        except DataError as error:
            if (data.long_rows if isinstance(error, LongRow) else data.bad_rows) == "stop":
                yield Problem("data.source", str(error))
        else:
            cut = " (cut to data.max_length)" if row.truncated else ""
            yield Fact(f"{example.source}: {_tokens(row, generates)}{cut}.")


def _tokens(row: Encoded, generates: bool) -> str:
    supervised = sum(end - start for start, end in row.spans)
    return f"{len(row.ids)} tokens" + (" of prompt" if generates else f", {supervised} of them supervised")
