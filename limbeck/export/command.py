"""What `limbeck export` exports, where to, and which text it is judged on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.data import read_examples, read_rows, row_id
from limbeck.errors import DataError, EmptyRow, LongRow, RunDirError, UnsupervisedRow
from limbeck.export.verified import ParityRows, export_lm, open_source, refuse_target, told_of
from limbeck.export.verified import card_of as card_of_source
from limbeck.models.artifact import read_card
from limbeck.recipe import FileSource, name_of_export
from limbeck.recipe.recipe import load_run_recipe
from limbeck.store import TraceStore
from limbeck.text.encode import Encoder, Example
from limbeck.types import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from transformers import PreTrainedTokenizerBase

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Export
    from limbeck.types import OnProgress, Trace

ARTIFACT = Path("train") / "student" / "artifact"
MOST_ROWS = 256
LONGEST = 512  # tokens of a row

PASSAGES = (
    "The river rose all night, and by morning the old bridge was gone. Nobody in the village had heard it fall. The "
    "baker, who crossed it every day before dawn, stood at the bank with his cart and counted the posts that were "
    "left.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n\n\n"
    'class Stack:\n    """Last in, first out."""\n\n    def __init__(self):\n        self.items = []\n',
    "Question: A train leaves at 9:40 and travels 156 km at 78 km/h. When does it arrive?\nAnswer: 156 / 78 = 2, so "
    "the journey takes two hours. 9:40 plus two hours is 11:40. The train arrives at 11:40.",
    "In 1969 two people walked on the Moon for two hours and thirty-one minutes. They collected 21.5 kilograms of rock "
    "and soil, set up a seismometer and a reflector, and left behind a plaque. The reflector is still in use.",
    "Ein Café in Zürich öffnet um acht Uhr. Der Kaffee kostet 4,50 Franken, das Croissant 2,80. Wer früh kommt, findet "
    "noch einen Platz am Fenster. Mittags wird es laut, und am Nachmittag sitzen dort vor allem Studierende.",
    "Le marché s'installe chaque samedi sur la place. On y trouve des légumes, du fromage et des fleurs. Les habitués "
    "arrivent tôt, avant la chaleur, et s'arrêtent ensuite au café pour lire le journal.",
    '{"id": 4711, "name": "Lamp, desk", "price": 39.9, "tags": ["light", "office"], "stock": {"north": 12, "south": '
    '0}, "updated": "2024-03-18T07:45:00Z"}\n{"id": 4712, "name": "Chair", "price": 129.0, "tags": [], "stock": {}}\n',
    "Dear Ms Okafor,\n\nThank you for your letter of 3 May. We have looked into the delay and found that your parcel "
    "was sent to the wrong depot. A new one left this morning; it should reach you within three days. We are sorry.\n\n"
    "Kind regards",
    "Photosynthesis turns light into chemical energy. In the first step, light splits water and releases oxygen; in "
    "the second, the energy gained is used to build sugar from carbon dioxide. Both take place in the chloroplast.",
    "- preheat the oven to 220 °C\n- mix 500 g flour, 350 g water, 10 g salt and 3 g yeast\n- fold every half hour, "
    "four times\n- shape, let it rest for an hour, and bake for 40 minutes until the crust is dark\n",
    "SELECT c.name, COUNT(o.id) AS orders, SUM(o.total) AS spent\nFROM customers AS c\nLEFT JOIN orders AS o ON "
    "o.customer_id = c.id\nWHERE c.country = 'PT'\nGROUP BY c.name\nHAVING COUNT(o.id) > 2\nORDER BY spent DESC;\n",
    "“You are late,” she said. “I know,” he answered, “the ferry did not run.” “It never runs on Sundays.” He put "
    "down his bag and looked at the clock above the door. It had stopped at ten past four, as it had every winter.",
)
"""Text of many kinds, for models that come without text of their own."""


@dataclass(frozen=True)
class ExportChoice:
    """What the command line says: the model, where to (None: beside it), and the text (None: the run's own, or built
    in)."""

    source: str
    out: Path | None = None
    rows: Path | None = None


def run_export(
    choice: ExportChoice, settings: Export, *, on_progress: OnProgress, on_message: Callable[[str], None]
) -> dict[str, Any]:
    """Export a run's student, an artifact, or any model that transformers opens. Returns its row of the parity table.

    Raises what `export_artifact` raises, DataError for rows that cannot be read or are too few, RunDirError for a run
    without a student.
    """
    model, run = find_source(choice.source)
    out = choice.out or default_folder(model, run, settings)
    refuse_target(out, Path(model))
    on_message(f"opening {model}")
    card, lm = card_of_source(model), open_source(model)
    judged = judged_on(lm, choice.rows, run)
    on_message(f"exporting to {out}; judged on {judged.text}")
    export_lm(lm, card, out, settings, judged, on_progress=on_progress)
    return told_of(out, read_card(out))


def find_source(source: str) -> tuple[str, Path | None]:
    """The model that is meant, and the run that it belongs to: a run folder means its student."""
    folder = Path(source)
    if (folder / "recipe.yaml").is_file():
        if not (folder / ARTIFACT).is_dir():
            raise RunDirError(f"the run {folder} has no student yet ({ARTIFACT}). Finish it first: limbeck train.")
        return str(folder / ARTIFACT), folder
    runs = folder.resolve().parents[2:3] if folder.name == ARTIFACT.name and folder.is_dir() else ()
    return source, next((run for run in runs if (run / "data" / "rows.parquet").is_file()), None)


def default_folder(model: str, run: Path | None, settings: Export) -> Path:
    """RUN/export/KIND-QUANT for a run's student; beside a folder or file; for any other model, in this folder."""
    name = name_of_export(settings)
    if run is not None and Path(model).resolve() == (run / ARTIFACT).resolve():
        return run / "export" / name
    path = Path(model)
    return (
        path.with_name(f"{path.stem if path.suffix == '.gguf' else path.name}-{name}")
        if path.exists()
        else Path(f"{path.name}-{name}")
    )


# ---- text ------------------------------------------------------------------------------------------------------------


def judged_on(lm: HfLM, file: Path | None, run: Path | None) -> ParityRows:
    """Rows of the file where one is given, else held-out rows of the run where it has any, else built-in texts."""
    length = min(lm.max_context or LONGEST, LONGEST)
    if file is not None:
        found = list(islice(_rows(lm.tokenizer, length, _examples(file)), MOST_ROWS))
        if not found:
            raise DataError(f"{file} has no usable row: none has two tokens. Give another file with --rows.")
        return ParityRows(found, f"rows of {file.name}")
    held_out = _held_out(run) if run else []
    if held_out:
        return ParityRows(held_out, "held-out rows")
    examples = (Example(text=text, source="built in") for text in PASSAGES)
    return ParityRows(list(_rows(lm.tokenizer, length, examples)), "built-in texts")


def _examples(file: Path) -> Iterable[Example]:
    return read_examples(FileSource(path=str(file)), bad_rows="skip", on_bad=lambda _: None)


def _rows(tokenizer: PreTrainedTokenizerBase, length: int, examples: Iterable[Example]) -> Iterable[Row]:
    encoder = Encoder(tokenizer, max_length=length, chat_template=tokenizer.chat_template is not None)
    for example in examples:
        with contextlib.suppress(EmptyRow, LongRow, UnsupervisedRow):
            row = encoder.encode(example)
            yield Row(row_id(row.text), "heldout", "", row.text, row.ids, row.spans, example.source)


def _held_out(run: Path) -> list[Row] | list[Trace]:
    """What the run was evaluated on: the teacher's replies to held-out prompts, or held-out rows."""
    if not (run / "data" / "rows.parquet").is_file():
        return []
    rows = [row for row in read_rows(run / "data" / "rows.parquet") if row.split == "heldout"]
    generates = load_run_recipe(run).trace.mode.generates
    if not generates or not (run / "traces" / "store.json").is_file():
        return [row for row in rows if row.num_supervised]
    wanted = {row.id for row in rows}
    return [trace for trace in TraceStore.open(run / "traces").traces("heldout") if trace.row_id in wanted]
