"""What a router is fitted on: prompts of experts, parted into those that teach, those that calibrate, those that judge.

`N` prompts, `M` models: the experts, then the teacher.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError
from limbeck.router.features import BITS, plain
from limbeck.router.frontier import RouteTarget

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TEACHER = "teacher"
MIN_TRAIN, MIN_HELDOUT = 10, 8
MOST_TRAIN = 20_000


@dataclass(frozen=True)
class PromptCase:
    """One prompt of an expert's. `split` is "train" or "heldout". `quality`, of held-out prompts: how well models do on
    it, 0 to 1, by the name of an expert, "teacher", or of another model that is only compared. `logp`: the mean
    log-prob of the own expert's reply, nats a token, None where it was not measured."""

    expert: str
    prompt: str
    split: str
    quality: Mapping[str, float] = field(default_factory=dict)
    logp: float | None = None


@dataclass(frozen=True)
class FitSettings:
    """What a router is fitted for. `costs` of a prompt by model, the teacher's 1; `compared` are models that take no
    part but stand in the report (a generalist, a larger model), with a cost each; `keep`: the share of held-out prompts
    in scope that may not be refused. `counter` are prompts by expert that are not its own; `background` prompts of no
    expert's kind (None: `background_prompts()`); `encoder` a folder, instead of hashed n-grams."""

    costs: Mapping[str, float]
    target: RouteTarget = field(default_factory=lambda: RouteTarget("quality", 0.95))
    keep: float = 0.95
    compared: tuple[str, ...] = ()
    counter: Mapping[str, Sequence[str]] = field(default_factory=dict)
    background: Sequence[str] | None = None
    seed: int = 0
    bits: int = BITS
    encoder: str = ""


@dataclass(frozen=True)
class Split:
    """Some of the prompts. `kind_N` are numbers of experts. NaN where it was not judged: `quality_NM`, `others_NG` of
    the compared models, `logp_N` of the own expert's reply."""

    prompts: list[str]
    kind_N: np.ndarray
    quality_NM: np.ndarray
    others_NG: np.ndarray
    logp_N: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        rows = np.asarray(rows, dtype=np.int64)
        prompts = [self.prompts[row] for row in rows]
        return Split(prompts, self.kind_N[rows], self.quality_NM[rows], self.others_NG[rows], self.logp_N[rows])


@dataclass(frozen=True)
class Splits:
    """Training prompts, and held-out ones in two halves. `notes` say what was left out."""

    train: Split
    calibrate: Split
    test: Split
    notes: list[str]


def part_cases(cases: Iterable[PromptCase], wish: FitSettings) -> tuple[list[str], Splits]:
    """Names of the experts, sorted, and their prompts.

    A prompt of a split counts once per expert. Held-out prompts that some expert was trained on are left out. The
    others of each expert are dealt to calibration and test in turn, in the order of their hashes; at most 20,000
    training prompts of an expert are taken, those of the lowest hashes. Raises DataError."""
    taught: dict[str, dict[str, PromptCase]] = defaultdict(dict)
    held: dict[str, dict[str, PromptCase]] = defaultdict(dict)
    for case in cases:
        if case.split not in ("train", "heldout"):
            raise DataError(f"a prompt of {case.expert} has the split {case.split!r}; it must be train or heldout.")
        _check_quality(case)
        home = taught if case.split == "train" else held
        home[case.expert].setdefault(plain(case.prompt), case)
    names = sorted({*taught, *held})
    _check_wish(names, wish)
    learnt = {text for texts in taught.values() for text in texts}
    notes, parts = [], ([], [], [])
    for name in names:
        leaked = [text for text in held[name] if text in learnt]
        for text in leaked:
            del held[name][text]
        if leaked:
            notes.append(f"{name}: {len(leaked)} held-out prompts are training prompts as well; they are left out.")
        _enough(name, len(taught[name]), len(held[name]))
        train = sorted(taught[name], key=_hash)
        if len(train) > MOST_TRAIN:
            notes.append(f"{name}: {MOST_TRAIN:,} of {len(train):,} training prompts are learnt from.")
        rest = sorted(held[name], key=_hash)
        parts[0].extend(taught[name][text] for text in train[:MOST_TRAIN])
        parts[1].extend(held[name][text] for text in rest[::2])
        parts[2].extend(held[name][text] for text in rest[1::2])
    train, calibrate, test = (_part(part, names, wish.compared) for part in parts)
    return names, Splits(train, calibrate, test, notes)


def _part(cases: list[PromptCase], names: list[str], compared: tuple[str, ...]) -> Split:
    def judged(models: Sequence[str]) -> np.ndarray:
        found = [[case.quality.get(model, np.nan) for model in models] for case in cases]
        return np.array(found, np.float64).reshape(len(cases), len(models))

    return Split(
        [case.prompt for case in cases],
        np.array([names.index(case.expert) for case in cases], np.int64),
        judged([*names, TEACHER]),
        judged(compared),
        np.array([np.nan if case.logp is None else case.logp for case in cases], np.float64),
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _check_quality(case: PromptCase) -> None:
    for model, value in case.quality.items():
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise DataError(f"the quality of {model} on a prompt of {case.expert} is {value!r}; it must be 0 to 1.")


def _check_wish(names: list[str], wish: FitSettings) -> None:
    if not names:
        raise DataError("there are no experts to route to. Add one: limbeck experts add.")
    if TEACHER in names:
        raise DataError(f"an expert cannot be named {TEACHER} here; add it under another name.")
    if both := sorted({*names} & {*wish.compared}):
        raise DataError(f"{both[0]} is an expert that is routed to, and to be compared with; it cannot be both.")
    for name in (*names, TEACHER, *wish.compared):
        cost = wish.costs.get(name)
        if cost is None:
            raise DataError(f"the cost of {name} is not known. Say it, with the teacher's as 1: --cost {name}=0.2")
        if not (math.isfinite(cost) and cost >= 0):
            raise DataError(f"the cost of {name} is {cost}; it must be 0 or more, with the teacher's as 1.")
    for name in sorted({*wish.costs} - {*names, TEACHER, *wish.compared}):
        raise DataError(f"there is a cost of {name}, which is no expert here; they are: {', '.join(names)}.")
    if wish.costs[TEACHER] <= 0:
        raise DataError("the teacher's cost is 0; all costs are shares of it. Say --cost teacher=1.")
    if not 0 < wish.keep <= 1:
        raise DataError(f"keep is {wish.keep}; it must be above 0 and at most 1, such as 0.95.")


def _enough(name: str, train: int, held: int) -> None:
    if train < MIN_TRAIN or held < MIN_HELDOUT:
        raise DataError(
            f"{name} has {train} training and {held} held-out prompts of its own; at least {MIN_TRAIN} and "
            f"{MIN_HELDOUT} are needed. Add the expert again from a run that holds more rows out "
            "(data.split.heldout), or give it fewer duplicates."
        )


# ---- prompts of no expert's kind -------------------------------------------------------------------------------------

# Without them a router learns what separates its experts, and reads "how do I ..." as a sign of the expert that saw it
# most. They are made, not collected: the same on every machine.
FRAMES = """\
what is {}?|tell me about {}|how does {} work?|how do I find {}?|can you explain {} to a child|who invented {}?
write a short story about {}|give me three facts about {}|what do you think of {}?|is {} worth the money?
why is {} important?|where can I buy {}?|list the pros and cons of {}|translate "{}" into German
summarise the history of {}|compare {} with {other}|I need help with {}|please write an email about {}
what should I know before {}?|draft a plan for {}|how much does {} cost?
what is the difference between {} and {other}?|{}|find me news on {}|is there a link between {} and {other}?
rewrite this: {} and {other}|how long does {} take?|suggest a title for an essay on {}
what are common mistakes with {}?|recommend a book on {}|which country is known for {}?
define {} in one sentence|who is the best known person in {}?|write a poem on {} and {other}
could you check whether {} is allowed?|my friend asked me about {}, what should I say?
how many kinds of {} are there?|give an example of {}|what happens if {} fails?|are there alternatives to {}?
when did {} begin?|plan a weekend around {}
"""
SUBJECTS = """\
the tides|black holes|a sourdough loaf|medieval castles|the stock market|jazz guitar|wind turbines|a marathon
the Roman senate|house plants|electric cars|the offside rule|chess openings|a job interview|mountain bikes
the French Revolution|solar panels|baby sleep|oil painting|inflation|a wedding speech|whales|earthquakes
the northern lights|contract law|copyright|a landlord|a used motorcycle|dog training|the Silk Road|origami
volcanoes|photosynthesis|penguins|the moon landing|opera|board games|a vegetable garden|carpentry|a leaking roof
tax returns|retirement savings|a passport|hotel rooms in Lisbon|train tickets|the Great Wall|pyramids
Shakespeare's sonnets|haiku|grammar|the subjunctive|public speaking|a cover letter|time management|meditation
yoga|swimming|tennis|ice hockey|the Olympic Games|sailing|knots|camping stoves|bird songs|beekeeping|cheese
coffee roasting|green tea|a birthday cake|chilli sauce|vegan food|wine regions|knives|cast iron pans
laundry stains|curtains|the weather tomorrow|hurricanes|snow tyres|traffic in London|bicycle lanes|airports
jet lag|visas|sea sickness|lost luggage|vaccines|headaches|a sprained ankle|allergies|blood pressure|antibiotics
the human heart|bones|nutrition|vitamins|prime numbers|long division|the Pythagorean theorem|probability
compound interest|a system of equations|fractions|geometry|a Python function|sorting a list|regular expressions
databases|a web server|unit tests|version control|a spreadsheet|passwords|phone batteries|printers|a slow laptop
headphones|televisions|video games|robots|satellites|radio waves|bridges|elevators|steel|concrete|glass|plastics
recycling|rain forests|deserts|rivers of Africa|islands in the Pacific|glaciers|elections|parliament
the constitution|human rights|immigration|trade unions|insurance|mortgages|credit scores|bank transfers
philosophy|Stoicism|Buddhism|Norse myths|Greek gods|astrology|dreams|memory|habits|friendship|loneliness|twins
genealogy|fashion|perfume|shoes|hair dye|tattoos|jewellery|sculpture|museums in Vienna|photography|film noir
stand-up comedy|podcasts|the violin|hip hop|folk dance|ballet|circus tricks|magic cards|crosswords|poker odds
lottery tickets|fireworks|kites|trains
"""


def background_prompts(most: int = 2000) -> list[str]:
    """`most` of some eight thousand prompts, those of the lowest hashes."""
    frames = [frame for line in FRAMES.splitlines() for frame in line.split("|")]
    subjects = [subject for line in SUBJECTS.splitlines() for subject in line.split("|")]
    made = {
        frame.format(subject, other=subjects[(number * 7 + at * 13 + 5) % len(subjects)])
        for (number, subject), (at, frame) in itertools.product(enumerate(subjects), enumerate(frames))
    }
    return sorted(made, key=lambda text: hashlib.sha256(text.encode()).digest())[:most]
