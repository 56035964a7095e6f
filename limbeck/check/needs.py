"""What a run will need, before any reply is paid for: packages, files, a sandbox, references, a family to export."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from limbeck.config.problems import problem
from limbeck.curate.dedup import unread
from limbeck.curate.sandbox.run import unavailable
from limbeck.curate.verifiers import verify_all
from limbeck.errors import DataError, MissingExtra, TeacherError
from limbeck.export.gguf_families import family_of
from limbeck.export.gguf_tokens import refuse_tokenizer
from limbeck.recipe import (
    DecontaminateRule,
    GenerateMode,
    JsonSchema,
    Judge,
    UnitTests,
    VerdictRule,
    VerifyRule,
    needs_reference,
    packages_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from limbeck.check.opened import Opened
    from limbeck.config.problems import Problem
    from limbeck.curate.verdicts import Verdict
    from limbeck.recipe import CurateRule, Export, Recipe, Verifier
    from limbeck.text.encode import Example


MOST_REFERENCES = 8
"""References that are read by `check`: a sandbox is started for each."""

PACKAGES = {
    "language": ("py3langid", "curate"),
    "near_duplicates": ("datasketch", "curate"),
    "math": ("math_verify", "verify"),
    "json_schema": ("jsonschema", "verify"),
}
"""Package and extra of a rule or verifier."""


def curation_needs(recipe: Recipe, opened: Opened) -> Iterator[Problem]:
    """What the recipe's rules and verifiers lack on this machine, and in the first rows."""
    mode, examples = recipe.trace.mode, opened.examples
    if isinstance(mode, GenerateMode) and mode.rejection is not None:
        verifier, where = mode.rejection.verifier, "trace.mode.rejection.verifier"
        yield from _verifier(verifier, where)
        yield from _references(verifier, examples, where)
    for number, rule in enumerate(recipe.curate):
        where = f"curate[{number}]"
        yield from _package(rule.kind, where)
        yield from _files(rule, where)
        if isinstance(rule, VerifyRule):
            yield from _verifier(rule.verifier, f"{where}.verifier")
            looked_at = [example for example in examples if not rule.topics or example.topic in rule.topics]
            yield from _references(rule.verifier, looked_at, where)


def _package(kind: str, where: str) -> Iterator[Problem]:
    package, extra = PACKAGES.get(kind, ("", ""))
    if package and find_spec(package) is None:
        yield problem(where, f"needs the package {package!r}; install it with: pip install 'limbeck[{extra}]'.")


def _files(rule: CurateRule, where: str) -> Iterator[Problem]:
    paths = rule.paths if isinstance(rule, DecontaminateRule) else ()
    for path in (rule.path,) if isinstance(rule, VerdictRule) else paths:
        if not Path(path).is_file():
            yield problem(where, f"names the file {path}, which is not there; correct the path.")
        elif isinstance(rule, DecontaminateRule) and (why := unread(Path(path))):
            yield problem(where, f"names a file that cannot be compared with: {why}")


def _verifier(verifier: Verifier, where: str) -> Iterator[Problem]:
    yield from _package(verifier.kind, where)
    if isinstance(verifier, JsonSchema) and verifier.path is not None and not Path(verifier.path).is_file():
        yield problem(where, f"names the file {verifier.path}, which is not there; correct the path.")
    if isinstance(verifier, UnitTests) and (why := unavailable(verifier.isolation)):
        yield problem(f"{where}.isolation", f"is {verifier.isolation}, which does not work on this machine: {why}")
    if isinstance(verifier, JsonSchema) and verifier.path is not None and Path(verifier.path).is_file():
        try:
            verify_all(verifier, [("", "")])
        except (DataError, UnicodeDecodeError) as error:
            yield problem(where, f"names a file that is no schema: {error}")
        except MissingExtra:
            return


def _references(verifier: Verifier, examples: Sequence[Example], where: str) -> Iterator[Problem]:
    """References that are missing, or that the verifier cannot read."""
    missing = next((example.source for example in examples if not example.truth), None)
    if not needs_reference(verifier):
        return
    if missing is not None:
        yield problem(
            where,
            f"compares replies with references, and {missing} has none. Name the column with data.source.reference, or "
            "the topics that have one with `topics` of a rule of curate.",
        )
    some = [example for example in examples if example.truth][:MOST_REFERENCES]
    for example, verdict in zip(some, _verdicts(verifier, [example.truth for example in some]), strict=False):
        if verdict.blames_reference:
            yield problem(where, f"cannot judge replies to {example.source}: {verdict.reason}.")
            return


def _verdicts(verifier: Verifier, references: Sequence[str]) -> list[Verdict]:
    """Verdicts on replies that say nothing: the reference is read all the same. None where the verifier cannot work on
    this machine, which is a problem of its own, and none of a judge, which would have to be opened or paid."""
    if isinstance(verifier, Judge) or next(_verifier(verifier, ""), None) is not None:
        return []
    return verify_all(verifier, [("", reference) for reference in references])


def export_needs(recipe: Recipe, opened: Opened) -> Iterator[Problem]:
    """Packages that are not installed, and formats that do not hold the student's family or its tokenizer."""
    for number, export in enumerate(recipe.export):
        where = f"export[{number}]"
        lacking = [(name, extra) for name, extra in packages_of(export) if find_spec(name) is None]
        for name, extra in lacking:
            message = f"needs the package {name!r}; install it with: pip install 'limbeck[{extra}]', or remove it."
            yield problem(where, message)
        looks = not lacking and (export.kind == "gguf" or export.quant == "int8")
        if looks and (why := _unfit(export, opened)):
            yield problem(where, f"does not fit the student: {why}")


def _unfit(export: Export, opened: Opened) -> str | None:
    if export.kind == "safetensors":
        student, head = opened.skeleton, opened.skeleton.get_output_embeddings()
        if any(isinstance(module, nn.Linear) and module is not head for module in student.modules()):
            return None
        return f"the family {student.config.model_type!r} has no linear layer that torchao quantizes. Use bfloat16."
    if export.kind != "gguf":
        return None
    try:
        family_of(opened.skeleton)
        refuse_tokenizer(opened.reader.tokenizer)  # the teacher's is saved with every student
    except TeacherError as error:
        return str(error)
    return None
