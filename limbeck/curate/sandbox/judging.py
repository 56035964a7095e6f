"""The process of the tests: what their names mean, whether all of them ran, and what that says of the program.

What a name of the tests means is theirs to say, and Python's: a program adds its own names (`offered`), and no other.
Runs inside the sandbox (`runner`): only the standard library, nothing of ours but its neighbours.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import symtable
import sys
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.curate.sandbox.wire import Gone, Remote, Unsure, decode, handle_of

if TYPE_CHECKING:
    from limbeck.curate.sandbox.wire import Line


STANDARD = {
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "math": "isclose isnan isinf inf nan pi sqrt floor ceil fabs gcd lcm factorial prod comb perm",
    "itertools": "chain combinations permutations product zip_longest islice groupby",
    "functools": "reduce partial lru_cache cache",
    "copy": "deepcopy",
    "typing": "List Dict Tuple Set Optional Any",
    "fractions": "Fraction",
    "decimal": "Decimal",
    "datetime": "datetime timedelta",
    "unittest": "TestCase",
}
"""What tests are written with and may have left to the program to import."""

CANNOT_CROSS = {"redirect_stdout", "redirect_stderr", "stdout", "stderr", "stdin", "patch", "capsys", "monkeypatch"}
"""Tests that look at a program's output, or change what it uses, from inside its process: a failure says nothing."""


class Names(NamedTuple):
    """Of all tests together: names that they use and do not define; attributes of each that they read; whether a name
    is used for anything but its attributes."""

    free: set[str]
    attributes: dict[str, set[str]]
    bare: set[str]


def names_of(tests: list[str]) -> Names:
    used: set[str] = set()
    defined: set[str] = set()
    attributes: dict[str, set[str]] = {}
    bare: list[str] = []
    for test in tests:
        collect_names(symtable.symtable(test, "test", "exec"), used, defined)
        owners = set()
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                attributes.setdefault(node.value.id, set()).add(node.attr)
                owners.add(node.value)
            elif isinstance(node, ast.Name) and node not in owners:
                bare.append(node.id)
    return Names(used - defined, attributes, set(bare))


def collect_names(table: symtable.SymbolTable, used: set[str], defined: set[str]) -> None:
    """Add the global names of a source, with all of its functions and classes, to those that it uses or defines."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            used.add(symbol.get_name())
        if (top or symbol.is_declared_global()) and (symbol.is_assigned() or symbol.is_imported()):
            defined.add(symbol.get_name())
    for child in table.get_children():
        collect_names(child, used, defined)


def offered(names: dict[str, Any], wanted: Names, line: Line) -> dict[str, Any]:
    """What tests see of a program's names. Names that begin with two underscores, modules, and Python's own names are
    never the program's; but where tests use a single one, and it is a name of Python's own (a program's own `sum`),
    then that is what they test."""
    theirs = {name: data for name, data in names.items() if name.isidentifier() and not name.startswith("__")}
    used = wanted.free & set(theirs)
    own = {name for name in used if not hasattr(builtins, name)}
    found = _standard_modules(wanted)
    alone = len(used - set(found)) == 1
    for name, data in theirs.items():
        if name in found or (hasattr(builtins, name) and not (alone and name in used and not own - set(found))):
            continue
        if data.get("t") == "module":
            if name in used:
                line.doubt(f"the tests use {name}, a module that they do not import")
        elif name in used and not alone and (home := _home(name, data)) is not None:
            found[name] = getattr(importlib.import_module(home), name)
            if "from" in data and data["from"].partition(".")[0].lstrip("_") != home:
                line.doubt(f"the tests use {name} without importing it, and the program has one of its own")
        else:
            found[name] = decode(data, lambda data: handle_of(data, line))
            line.asked += name in used and not isinstance(found[name], (Remote, type))
    return found


def _standard_modules(wanted: Names) -> dict[str, Any]:
    """Modules that tests use without an import: `math.isclose`, and nothing else of that name."""
    found = {}
    for name in sorted((wanted.free - wanted.bare) & set(sys.stdlib_module_names)):
        module = importlib.import_module(name)
        if all(hasattr(module, attribute) for attribute in wanted.attributes.get(name, ["?"])):
            found[name] = module
    return found


def _home(name: str, data: dict[str, Any]) -> str | None:
    """The module of the standard library that a name is taken to be of: as the program says, or by STANDARD."""
    said = str(data.get("from", "")).partition(".")[0]
    if said in sys.stdlib_module_names and hasattr(importlib.import_module(said), name):
        return said
    return next((module for module, those in STANDARD.items() if name in those.split()), None)


def judge(task: dict[str, Any], line: Line) -> dict[str, Any]:
    try:
        ready = line.receive()
        if "error" in ready:
            return {"ok": False, "reason": f"the program raised {ready['error']}: {ready['text']}"}
        names = {str(name): data for name, data in ready["names"].items()}
    except (EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"ok": False, "reason": f"the program has ended before its tests ({error})"[:500]}
    try:
        wanted = names_of(task["tests"])
    except (SyntaxError, ValueError) as error:
        return {"ok": None, "reason": f"the tests are not Python: {error}"[:500]}
    reason = _run_all(task, names, wanted, line)
    if line.gone:
        return {"ok": False, "reason": line.gone[:500]}
    if line.unsure:
        return {"ok": None, "reason": line.unsure[:500]}
    if reason:
        return {"ok": False, "reason": reason[:500]}
    if not line.asked:
        return {"ok": None, "reason": "the tests ask nothing of the program"}
    return {"ok": True, "reason": f"{len(task['tests'])} tests passed"}


def _run_all(task: dict[str, Any], names: dict[str, Any], wanted: Names, line: Line) -> str:
    """Run every test: why one failed, or ""."""
    module = types.ModuleType("__main__")  # `unittest.main` looks there for what to run
    sys.modules["__main__"] = module
    try:
        module.__dict__.update(offered(names, wanted, line), __builtins__=builtins)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        return f"the program's names cannot be read ({error})"
    for number, test in enumerate(task["tests"], 1):
        try:
            exec(compile(test, f"test {number}", "exec", dont_inherit=True), module.__dict__)
            _call_defined(task, ast.parse(test), module.__dict__, line)
        except SystemExit as error:  # of the tests' own: a program's never gets here
            if error.code:
                return f"test {number} failed: it ended with {error.code}"
        except (Gone, Unsure):
            return f"test {number} could not be judged"
        except Exception as error:
            return _failed(number, test, error, line)
    return ""


def _failed(number: int, test: str, error: Exception, line: Line) -> str:
    remote = vars(type(error)).get("_limbeck_remote") or vars(error).get("_limbeck_remote")
    if isinstance(error, ImportError) and not remote:
        line.doubt(f"test {number} needs what is not in the sandbox: {error}")
    nodes = ast.walk(ast.parse(test))
    seen = {getattr(node, "attr", getattr(node, "id", "")) for node in nodes} & CANNOT_CROSS
    if seen:
        line.doubt(f"test {number} uses {min(seen)}, which does not reach into the program's process")
    if isinstance(error, AssertionError):
        return f"test {number} failed: {str(error) or test.strip()[:200]}"
    return f"test {number} raised {type(error).__name__}: {error}"


def _call_defined(task: dict[str, Any], tree: ast.Module, space: dict[str, Any], line: Line) -> None:
    """Call what a test only defines: `test_...` functions and classes, and HumanEval's `check(candidate)`. What is left
    with an assertion in it, and is never used, leaves the verdict open."""
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name in loaded:
            continue
        if isinstance(node, ast.ClassDef):
            _run_class(node, space[node.name], line)
        elif node.name == "check" and _required(node) == 1 and _simple(node):
            space["check"](_candidate(task, space, line))
        elif node.name.startswith("test") and not _required(node) and _simple(node):
            space[node.name]()
        elif node.name.startswith("test") or _asserts(node):
            line.doubt(f"the tests define {node.name} and never call it")


def _required(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    args = node.args
    named = sum(default is None for default in args.kw_defaults)
    return len(args.posonlyargs) + len(args.args) - len(args.defaults) + named


def _simple(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a call runs its body: of coroutines and generators it does not."""
    kinds = (ast.Yield, ast.YieldFrom)
    lazy = any(isinstance(inner, kinds) for inner in ast.walk(node))
    return isinstance(node, ast.FunctionDef) and not node.decorator_list and not lazy


def _asserts(node: ast.AST) -> bool:
    return any(isinstance(inner, (ast.Assert, ast.Raise)) for inner in ast.walk(node))


def _candidate(task: dict[str, Any], space: dict[str, Any], line: Line) -> Any:
    """The function that `check` is given: the one that the data names, or else the program's only one."""
    named = task.get("entry_point")
    if named is None:
        defined = [node.name for node in ast.parse(task["program"]).body if isinstance(node, ast.FunctionDef)]
        if len(set(defined)) != 1:
            raise line.doubt("the tests define check(candidate), and nothing says which function it is to check")
        named = defined[0]
    if named not in space:
        raise AssertionError(f"the program has no function {named}")
    return space[named]


def _run_class(node: ast.ClassDef, kind: type, line: Line) -> None:
    import unittest

    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test")]
    if issubclass(kind, unittest.TestCase):
        result = unittest.TestResult()
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(kind)
        suite.run(result)
        for _, trace in [*result.failures, *result.errors]:
            raise AssertionError(f"{node.name}: {trace.strip().splitlines()[-1]}")
        if not result.testsRun or result.skipped:
            line.doubt(f"{node.name} runs no test")
    elif node.name.startswith("Test") and methods and all(_simple(one) and _required(one) == 1 for one in methods):
        for method in methods:
            getattr(kind(), method.name)()
    elif node.name.startswith("Test") or _asserts(node):
        line.doubt(f"the tests define {node.name} and never use it")
