"""The recipe: everything a run does, as one typed tree. One file per key of the YAML; no torch.

Its sections are imported from here: `from limbeck.recipe import Recipe, GenerateMode`.
"""

from limbeck.recipe.curate import (
    MISSED,
    CodeRule,
    CurateRule,
    DecontaminateRule,
    DuplicateRule,
    FinishRule,
    LanguageRule,
    LengthRule,
    NearDuplicateRule,
    ParagraphRule,
    PassRateRule,
    QuotaRule,
    RepetitionRule,
    ThinkRule,
    VerdictRule,
    VerifyRule,
)
from limbeck.recipe.data import CapturedSource, DatasetSource, FileSource, ProblemsSource, Source, StdlibSource
from limbeck.recipe.evaluate import Evaluate, Harness, Tasks, temperature_and_top_p
from limbeck.recipe.export import BITS, EXPORTS, Export, bound_of, make_export, name_of_export, packages_of, quants_of
from limbeck.recipe.objective import (
    AlsoTerm,
    ByTeacher,
    Divergence,
    FirstTokens,
    HalfCosine,
    Objective,
    PlaceRamp,
    PositionWeights,
    Schedule,
    TeacherWeights,
    TokenWeights,
    needs_of,
)
from limbeck.recipe.recipe import Recipe
from limbeck.recipe.student import PretrainedStudent, PruneStudent, ScratchStudent
from limbeck.recipe.teacher import HfTeacher, OpenAITeacher, Prices, VllmTeacher, is_local, name_of
from limbeck.recipe.trace import (
    GenerateMode,
    Hybrid,
    Live,
    Sampled,
    ScoreMode,
    Target,
    TextTarget,
    TopK,
    TraceSection,
    Votes,
)
from limbeck.recipe.train import WSD, Constant, Cosine, Epochs, Minutes, Optimizer, Qad, Steps, Tokens, Train
from limbeck.recipe.verifier import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests, Verifier, needs_reference

# fmt: off
__all__ = [  # noqa: RUF022
    "AlsoTerm", "BITS", "bound_of", "ByTeacher", "CapturedSource", "CodeRule", "Constant", "Cosine", "CurateRule",
    "DatasetSource", "DecontaminateRule", "Divergence", "DuplicateRule", "Epochs", "Evaluate", "Exact", "Export",
    "EXPORTS", "FileSource", "FinishRule", "FirstTokens", "GenerateMode", "HalfCosine", "Harness", "HfTeacher",
    "Hybrid", "is_local", "JsonSchema", "Judge", "LanguageRule", "LengthRule", "Live", "make_export", "Math",
    "Minutes", "MISSED", "name_of", "name_of_export", "NearDuplicateRule", "needs_of", "needs_reference", "Numeric",
    "Objective", "OpenAITeacher", "Optimizer", "packages_of", "ParagraphRule", "PassRateRule", "PlaceRamp",
    "PositionWeights", "PretrainedStudent", "Prices", "ProblemsSource", "PruneStudent", "Qad", "quants_of",
    "QuotaRule", "Recipe", "Regex", "RepetitionRule", "Sampled", "Schedule", "ScoreMode", "ScratchStudent", "Source",
    "StdlibSource", "Steps", "Target", "Tasks", "TeacherWeights", "temperature_and_top_p", "TextTarget", "ThinkRule",
    "Tokens", "TokenWeights", "TopK", "TraceSection", "Train", "UnitTests", "VerdictRule", "Verifier", "VerifyRule",
    "VllmTeacher", "Votes", "WSD",
]
# fmt: on
