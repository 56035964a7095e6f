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
from limbeck.recipe.data import CapturedSource, DatasetSource, DataSource, FileSource, ProblemsSource, StdlibSource
from limbeck.recipe.evaluate import Evaluate, Harness, Tasks, temperature_and_top_p
from limbeck.recipe.export import BITS, EXPORTS, Export, bound_of, make_export, name_of_export, packages_of, quants_of
from limbeck.recipe.objective import (
    ByTeacher,
    DivergenceSettings,
    ExtraTerm,
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
from limbeck.recipe.teacher import HfTeacher, OpenAITeacher, Prices, VllmTeacher, name_of
from limbeck.recipe.trace import (
    GenerateMode,
    Hybrid,
    Live,
    Sampled,
    ScoreMode,
    TargetSettings,
    TextTarget,
    TopK,
    TraceSection,
    Votes,
)
from limbeck.recipe.train import (
    WSD,
    Constant,
    Cosine,
    EpochsBudget,
    MinutesBudget,
    Optimizer,
    Qad,
    StepsBudget,
    TokensBudget,
    Train,
)
from limbeck.recipe.verifier import Exact, JsonSchema, Judge, Math, Numeric, Regex, UnitTests, Verifier, needs_reference

# fmt: off
__all__ = [  # noqa: RUF022
    "BITS", "bound_of", "ByTeacher", "CapturedSource", "CodeRule", "Constant", "Cosine", "CurateRule",
    "DatasetSource", "DataSource", "DecontaminateRule", "DivergenceSettings", "DuplicateRule", "EpochsBudget",
    "Evaluate", "Exact", "Export", "EXPORTS", "ExtraTerm", "FileSource", "FinishRule", "FirstTokens", "GenerateMode",
    "HalfCosine", "Harness", "HfTeacher", "Hybrid", "JsonSchema", "Judge", "LanguageRule", "LengthRule",
    "Live", "make_export", "Math", "MinutesBudget", "MISSED", "name_of", "name_of_export", "NearDuplicateRule",
    "needs_of", "needs_reference", "Numeric", "Objective", "OpenAITeacher", "Optimizer", "packages_of",
    "ParagraphRule", "PassRateRule", "PlaceRamp", "PositionWeights", "PretrainedStudent", "Prices", "ProblemsSource",
    "PruneStudent", "Qad", "quants_of", "QuotaRule", "Recipe", "Regex", "RepetitionRule", "Sampled", "Schedule",
    "ScoreMode", "ScratchStudent", "StdlibSource", "StepsBudget", "TargetSettings", "Tasks", "TeacherWeights",
    "temperature_and_top_p", "TextTarget", "ThinkRule", "TokensBudget", "TokenWeights", "TopK", "TraceSection",
    "Train", "UnitTests", "VerdictRule", "Verifier", "VerifyRule", "VllmTeacher", "Votes", "WSD",
]
# fmt: on
