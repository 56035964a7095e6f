"""The models of a recipe against its other parts: context, layers, tokenizer, quantization, and the first rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from limbeck.check.findings import Doubt, Fact, Finding
from limbeck.config.problems import Problem, problem
from limbeck.data.build import encoder_of, never_ends
from limbeck.errors import DataError, LimbeckError, LongRow, RecipeError
from limbeck.recipe import GenerateMode, PruneStudent, ScratchStudent
from limbeck.text.chat_template import ChatTemplate, compare_templates
from limbeck.text.tokenizer import compare_roles, compare_tokenizers, template_hash
from limbeck.train.qad import stored_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.check.opened import ModelOutline, Opened
    from limbeck.recipe import Recipe
    from limbeck.text.encode import Encoded, Example


def rows_fit_context(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """The longest row, with the longest reply, fits into the context of each model."""
    yield from _fits(recipe, opened.reader)
    if opened.student is not None and opened.student is not opened.reader:
        yield from _fits(recipe, opened.student)


def _fits(recipe: Recipe, model: ModelOutline) -> Iterator[Finding]:
    mode = recipe.trace.mode
    reply = mode.max_tokens if isinstance(mode, GenerateMode) else 0
    if model.context is None:
        return
    longest = recipe.data.max_length + reply
    if longest <= model.context:
        yield Fact(f"{model.who}: context of {model.context} tokens; rows have at most {longest}.")
        return
    with_reply = f" and replies up to {reply} (trace.mode.max_tokens)" if reply else ""
    room = model.context - reply
    advice = f"Set data.max_length to at most {room}." if room >= 2 else "Lower trace.mode.max_tokens."
    yield problem(
        "data.max_length",
        f"allows rows up to {recipe.data.max_length} tokens{with_reply}, but the {model.who} reads at most "
        f"{model.context}. {advice}",
    )


def layers_exist(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """The layers to keep are the teacher's, and something is removed."""
    student = recipe.student
    if not isinstance(student, PruneStudent) or not recipe.teacher.is_local or opened.reader.layers is None:
        return
    layers = opened.reader.layers
    if student.layers is not None and student.layers >= layers:
        message = (
            f"is {student.layers}, but the teacher has {layers}: nothing would be removed; give at most {layers - 1}."
        )
        yield problem("student.layers", message)
    beyond = [layer for layer in student.keep or () if layer >= layers]
    if beyond:
        yield problem("student.keep", f"names the layers {beyond}, but the teacher's are 0 to {layers - 1}.")
    elif student.keep and len(student.keep) == layers:
        yield problem("student.keep", f"keeps all {layers} layers of the teacher: nothing would be removed.")


def tokenizers_agree(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """Same tokens in the same order; heads padded to other sizes are cut, other tokenizers are refused."""
    student = opened.student
    if student is None or not recipe.teacher.is_local:
        return
    teacher = opened.reader
    if differences := compare_tokenizers(teacher.tokenizer, student.tokenizer):
        yield problem(
            "student.path",
            f"has another tokenizer than the teacher: {'; '.join(differences)}. Token distributions only fit the "
            "tokens they were made for; choose a student of the teacher's family, or build one: "
            "student.kind=prune or scratch.",
        )
        return
    yield Fact(f"teacher and student share one tokenizer of {len(teacher.tokenizer)} tokens.")
    for difference in compare_roles(teacher.tokenizer, student.tokenizer):
        yield Fact(f"{difference}; the teacher's tokenizer makes the rows, and is saved with the student.")
    yield from _heads(teacher, student)
    if template_hash(teacher.tokenizer) != template_hash(student.tokenizer):
        parting = compare_templates(ChatTemplate(teacher.tokenizer), ChatTemplate(student.tokenizer))
        how = f"differ: {parting} in the student's" if parting else "are written differently, and say the same"
        yield Fact(f"their chat templates {how}; the teacher's is used for both, and saved with the student.")


def _heads(teacher: ModelOutline, student: ModelOutline) -> Iterator[Finding]:
    real, rows = teacher.vocab.real, student.vocab.head
    if rows < real:
        yield problem(
            "student.path", f"has a head of {rows} rows for {real} tokens; it cannot speak the teacher's last tokens."
        )
    elif rows != teacher.vocab.head:
        yield Fact(
            f"their heads are padded to {teacher.vocab.head} and {rows} rows; both are cut to the {real} real tokens."
        )


def tokens_have_rows(_recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """A token that was added without resizing the model has no row in it. Rows of data without it are sound."""
    for model in [opened.reader] + [opened.student] * (opened.student not in (None, opened.reader)):
        assert model is not None
        if lacking := model.vocab.without_row:
            named = ", ".join(repr(model.tokenizer.convert_ids_to_tokens(id)) for id in lacking[:5])
            yield Doubt(
                Problem(
                    "teacher.path" if model.who == "teacher" else "student.path",
                    f"names a tokenizer with {model.vocab.ids} ids for a model of {model.vocab.embedding} rows: tokens "
                    f"were added without resizing it ({named}). Rows of data that hold one are refused.",
                )
            )


def student_can_be_quantized(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """The export that the student is trained for knows its architecture."""
    qad = recipe.train.qad
    if qad is None:
        return
    try:
        stored = stored_weights(opened.skeleton, qad.quant)
    except RecipeError as error:
        yield Problem("train.qad", str(error))
        return
    ends = {each.grid for each in stored if not isinstance(each.module, torch.nn.Linear)}
    yield Fact(
        f"student: trains with the weights of its {qad.quant} export: {len(stored)} matrices, embeddings and head in "
        f"{' and '.join(sorted(ends))}; it is saved in float32."
    )
    wide = [each.name for each in stored if each.grid == "f16"]
    if wide and not isinstance(recipe.student, ScratchStudent):  # whose sizes are not chosen yet
        message = (
            f"is {qad.quant}, which stores rows in blocks of 32, but the rows of {', '.join(wide[:3])} are no whole "
            f"blocks ({len(wide)} of {len(stored)} matrices): they stay 16-bit floats, here and in the export."
        )
        yield Doubt(problem("train.qad.quant", message))


def template_exists(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    if _lacks_template(recipe, opened):
        yield problem(
            "data.source",
            f"has chat rows, but the tokenizer of {recipe.reader[0]} has no chat template (a base model?). "
            "Choose an instruct model, or join prompt and completion as plain text: data.chat_template=false.",
        )


def _lacks_template(recipe: Recipe, opened: Opened) -> bool:
    chats = any(_is_chat(recipe, example) for example in opened.examples)
    return chats and opened.reader.tokenizer.chat_template is None


def _is_chat(recipe: Recipe, example: Example) -> bool:
    return example.messages is not None or (example.prompt is not None and recipe.data.chat_template)


def first_rows_encode(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """Tokens of each, and how many of them are supervised."""
    if _lacks_template(recipe, opened):
        return
    data, generates = recipe.data, isinstance(recipe.trace.mode, GenerateMode)
    encoder = replace(encoder_of(recipe, opened.reader.tokenizer), num_rows=opened.reader.vocab.embedding)
    replies = ended = 0
    for example in opened.examples:
        try:
            row = encoder.encode(example)
        except DataError as error:
            if (data.long_rows if isinstance(error, LongRow) else data.bad_rows) == "stop":
                yield Problem("data.source", str(error))
        else:
            cut = " (cut to data.max_length)" if row.truncated else ""
            yield Fact(f"{example.source}: {_tokens(row, generates)}{cut}.")
            found = encoder.count_ends(row)
            replies, ended = replies + found[0], ended + found[1]
    if warning := never_ends(replies, ended):
        yield Doubt(Problem("data.source", warning))
    elif replies:
        yield Fact(f"{ended} of {replies} replies of the first rows end in a token that stops generation.")


def template_is_plain(recipe: Recipe, opened: Opened) -> Iterator[Finding]:
    """What a template does to rows that nobody sees in them."""
    if _lacks_template(recipe, opened) or not any(_is_chat(recipe, example) for example in opened.examples):
        return
    template = ChatTemplate(opened.reader.tokenizer, encoder_of(recipe, opened.reader.tokenizer).settings)
    try:
        opens, end = template.opened.strip(), template.end_of_turn
    except LimbeckError as error:
        yield Doubt(
            Problem("data.source", f"has chat rows, and the template refuses the simplest conversation: {error}")
        )
        return
    if opens:
        yield Fact(
            f"the chat template asks for a reply with {opens!r}, which a finished turn without a reasoning has not: "
            "replies are learnt best with their reasoning in <think> tags."
        )
    if isinstance(recipe.trace.mode, GenerateMode) and template.end_id is None:
        shown = f"ends turns with {end!r}, which is no special token" if end.strip() else "ends turns with nothing"
        yield Doubt(Problem("data.source", f"has chat rows, but the chat template {shown}: students may never stop."))
    if not recipe.teacher.is_local and any(example.tools for example in opened.examples):
        message = "has tools, which rows are rendered with; an endpoint is not told of them, and no call is asked for."
        yield Doubt(Problem("data.source", message))


def _tokens(row: Encoded, generates: bool) -> str:
    supervised = sum(end - start for start, end in row.spans)
    return f"{len(row.ids)} tokens" + (" of prompt" if generates else f", {supervised} of them supervised")
