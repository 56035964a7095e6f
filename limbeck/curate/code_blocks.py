"""Which part of a reply is the program, or the JSON: code blocks as Markdown has them, and what they define."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from limbeck.curate.answers import without_thinking
from limbeck.curate.sandbox.judging import collect_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FENCE = re.compile(r"^([ \t]*(?:[-*+>][ \t]+|\d{1,9}[.)][ \t]+)?)(`{3,}|~{3,})[ \t]*([^`\n]*)$")
DEFINED = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
BEGINS = re.compile(r"^(?:async def |def |class |import |from \w[\w.]* import |@)", re.MULTILINE)
PYTHON = ("python", "py", "python3", "")


class CodeBlock(NamedTuple):
    language: str
    text: str


class Choice(NamedTuple):
    """The part that was chosen; None where several could be meant, and `why`."""

    text: str | None
    why: str = ""


def code_blocks(text: str) -> list[CodeBlock]:
    """Fenced blocks in order (CommonMark 4.5): of back ticks or tildes, also in lists, and one that is never closed up
    to the end. A fence that is indented by four more than the opening one is text."""
    return list(_blocks(text.replace("\r\n", "\n").split("\n")))


def _blocks(lines: Sequence[str]) -> Iterator[CodeBlock]:
    fence, language, indent, held = "", "", 0, list[str]()
    for line in lines:
        found = FENCE.match(line)
        if not fence and found:
            fence, language = found[2], (found[3].split() or [""])[0].strip("{}.").casefold()
            indent, held = len(found[1].expandtabs()), []
        elif fence and found and not found[3].strip() and found[2].startswith(fence) and _closes(found[1], indent):
            yield CodeBlock(language, textwrap.dedent("\n".join(held)) + "\n")
            fence = ""
        elif fence:
            held.append(line)
    if fence:
        yield CodeBlock(language, textwrap.dedent("\n".join(held)) + "\n")


def _closes(before: str, indent: int) -> bool:
    return not before.strip() and len(before.expandtabs()) < indent + 4


# ---- programs --------------------------------------------------------------------------------------------------------


def choose_program(reply: str, tests: Sequence[str], entry_point: str | None = None) -> Choice:
    """The program of a reply: the code block that defines what the tests call (or `entry_point`), with those before it
    that define what it uses. Where no block defines it, the only one; without blocks, the reply from its first
    definition on. Several that define the same are several answers: none is chosen."""
    text = without_thinking(reply)
    found = code_blocks(text)
    blocks = list(dict.fromkeys(block.text for block in found if block.language in PYTHON))
    if not found:
        return Choice(_without_prose(text.replace("\r\n", "\n")))
    names = [defined_in(block) for block in blocks]
    wanted = {entry_point} if entry_point else used_by(tests)
    chosen = [at for at, those in enumerate(names) if those & wanted]
    twice = {name for at in chosen for name in names[at] & wanted if sum(name in names[other] for other in chosen) > 1}
    if twice:
        return Choice(None, f"several code blocks define {min(twice)}, and nothing says which one is the answer")
    if not chosen:
        chosen = [at for at, those in enumerate(names) if those] or list(range(len(blocks)))
        if len(chosen) != 1:
            return Choice(None, f"{len(chosen)} code blocks, and none defines what the tests call")
    return Choice("\n".join(blocks[at] for at in sorted(_with_needs(chosen, blocks, names))))


def _with_needs(chosen: list[int], blocks: list[str], names: list[set[str]]) -> set[int]:
    """The blocks chosen, and those before them that define what they use."""
    whole, todo = set(chosen), list(chosen)
    while todo:
        at = todo.pop()
        needs = used_by([blocks[at]])
        for other in range(at):
            if other not in whole and names[other] & needs:
                whole.add(other)
                todo.append(other)
    return whole


def _without_prose(text: str) -> str:
    """A program without a fence: from its first definition on, if the reply as a whole is none."""
    begins = BEGINS.search(text)
    if begins is None or _parsed(text) is not None:
        return text
    return text[begins.start() :]


def defined_in(source: str) -> set[str]:
    """Names that a source defines or imports at its top, or by the look of it where it is no Python."""
    tree = _parsed(source)
    if tree is None:
        return set(DEFINED.findall(source))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    aliases = [alias for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    found |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    return found | {target.id for target in targets if isinstance(target, ast.Name)}


def used_by(sources: Sequence[str]) -> set[str]:
    """Names that sources use together and do not define, Python's own aside."""
    used, defined = set[str](), set[str]()
    for source in sources:
        try:
            collect_names(symtable.symtable(source, "source", "exec"), used, defined)
        except (SyntaxError, ValueError, RecursionError):
            continue
    return {name for name in used - defined if not hasattr(builtins, name)} or (used & _called(sources)) - defined


def _called(sources: Sequence[str]) -> set[str]:
    trees = [tree for source in sources if (tree := _parsed(source)) is not None]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


# ---- JSON ------------------------------------------------------------------------------------------------------------


def json_texts(reply: str) -> list[str]:
    """What of a reply may be its JSON: the blocks that say so, or else those that say nothing, or else all of it."""
    text = without_thinking(reply)
    found = code_blocks(text)
    named = [block.text for block in found if block.language == "json"]
    return list(dict.fromkeys(named or [block.text for block in found if not block.language])) or [text]
