"""Chat templates in a sandbox: they are programs that come with models, and nothing that one writes may hold a process.

Every loop step, call and filter is counted and clocked, and every value that is made is measured before it is used:
`x ~ x` forty times over, or a list in a list forty deep, takes more than any machine has. So loops, literals and
concatenations are rewritten when a template is parsed, and operators, calls and filters are intercepted. What goes
beyond a limit is an error of the template. Otherwise the environment is that of transformers: its options, its globals,
its tags. A process of its own with a deadline would need no such list, and a hundred times the time of a short row.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jinja2 import Template
    from jinja2.parser import Parser

MAX_SOURCE = 2**20
"""Most characters of a template. The longest in use have 40,000."""

MAX_RENDERED = 16 * 2**20
"""Most characters of one rendered row, and of any text on the way: a template may blow a row up."""

MAX_MADE = 2**29
"""Most characters of all texts that one rendering makes on the way."""

MAX_VALUES = 500_000
"""Most values in one list or dict, those within counted as often as they stand there."""

MAX_STEPS, MAX_SECONDS = 2_000_000, 10.0
"""Most steps and seconds of one rendering: a conversation of 1,000 turns takes some 20,000 steps."""

MAX_WIDTH = 10_000
"""Largest number of an indent, a padding, a batch, and of digits."""

FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,  # RecursionError too
    MemoryError,
    SyntaxError,
    AssertionError,
    StopIteration,
)
"""What a stranger's program may raise, in its own words or in those of what it calls."""


class TemplateLimit(TemplateError):
    """A template went beyond what a rendering may take."""


def render_template(source: str, variables: Mapping[str, Any], day: date | None = None) -> str:
    """What the template makes of `variables`. `day` is what its clock shows; None: the time it is. Raises one of
    FAILURES."""
    meter = _Meter(time.monotonic() + MAX_SECONDS)
    token = _METER.set(meter)
    try:
        parts, length = [], 0
        for part in _compiled(source).generate(strftime_now=_clock(day), **variables):
            length += len(part)
            if length > MAX_RENDERED:
                raise TemplateLimit(f"it makes more than {MAX_RENDERED:,} characters of this row; no more are allowed")
            parts.append(part)
        return "".join(parts)
    finally:
        _METER.reset(token)


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    if len(source) > MAX_SOURCE:
        raise TemplateLimit(f"it has {len(source):,} characters; allowed are {MAX_SOURCE:,}")
    return _ENVIRONMENT.from_string(source)


def _clock(day: date | None) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if len(format) > MAX_WIDTH or _WIDE.search(format):
            raise TemplateLimit("it formats the date at a great length")
        return (datetime(day.year, day.month, day.day, 12) if day else datetime.now()).strftime(format)

    return strftime_now


# ---- what is counted -------------------------------------------------------------------------------------------------


@dataclass
class _Meter:
    """What one rendering has taken. The clock is read every 64 steps, and after every long text."""

    until: float
    steps: int = 0
    made: int = 0

    def step(self, made: int = 0) -> None:
        self.steps += 1
        self.made += made
        if self.steps > MAX_STEPS or self.made > MAX_MADE:
            raise TemplateLimit(f"it takes more than {MAX_STEPS:,} steps, or {MAX_MADE:,} characters on the way")
        if not self.steps & 63:
            self.tick()

    def tick(self) -> None:
        if time.monotonic() > self.until:
            raise TemplateLimit(f"it takes longer than {MAX_SECONDS:g} seconds")

    def measure(self, value: Any) -> Any:
        """The value, where it is within bounds."""
        if isinstance(value, str):
            if len(value) > 256:
                _allow(len(value))
                self.step(len(value))
                self.tick()
        elif isinstance(value, int):
            if value.bit_length() > 4 * MAX_WIDTH:
                raise TemplateLimit("it makes a number of thousands of digits")
        elif isinstance(value, list | tuple | dict | Namespace):
            self.step(_weight(value) // 64)
        return value


_METER: ContextVar[_Meter | None] = ContextVar("limbeck_template", default=None)


def _meter() -> _Meter:
    """That of this rendering; a new one where a constant is worked out while a template is compiled."""
    return _METER.get() or _Meter(time.monotonic() + MAX_SECONDS)


def _allow(size: float) -> None:
    if size > MAX_RENDERED:
        raise TemplateLimit(f"it makes a text of {size:,.0f} characters; allowed are {MAX_RENDERED:,}")


def _weight(value: Any) -> int:
    """Characters and values within, each as often as it stands there: what a text of it, or comparing it, costs."""
    weight, count, stack = 0, 0, [value]
    while stack:
        one = stack.pop()
        count += 1
        if isinstance(one, str):
            weight += len(one)
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            stack += one
        elif isinstance(one, Namespace):
            stack += object.__getattribute__(one, "_Namespace__attrs").values()
        if count + len(stack) > MAX_VALUES:
            raise TemplateLimit(f"it makes a value that holds more than {MAX_VALUES:,} others")
        _allow(weight)
    return weight + count


def _steps(values: Iterable[Any], made: int) -> Iterator[Any]:
    meter = _meter()
    for value in values:
        meter.step(made)
        yield value


@dataclass
class _Counted:
    """What a loop goes over, each step counted. Its length is told where it has one, for `loop.length`."""

    values: Any
    made: int

    def __iter__(self) -> Iterator[Any]:
        return _steps(self.values, self.made)

    def __len__(self) -> int:
        return len(self.values)


# ---- what blows a value up -------------------------------------------------------------------------------------------

_WIDE = re.compile(r"\d{5}|\*|\{[^{}]*\{")


def _narrow(values: Iterable[Any]) -> None:
    for each in values:
        if isinstance(each, int | float) and abs(each) > MAX_WIDTH:
            raise TemplateLimit(f"it asks for a width of {each:,}; allowed is {MAX_WIDTH:,}")


def _replacing(text: Any, args: list[Any]) -> None:
    if len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        _allow(len(str(text)) + str(text).count(old) * max(len(new) - len(old), 0))


def _joining(between: Any, values: Any) -> None:
    if isinstance(values, list | tuple | dict):
        _allow(len(str(between)) * len(values) + _weight(values))


def _formatting(text: Any, args: list[Any]) -> None:
    if _WIDE.search(str(text)):
        raise TemplateLimit("it formats with a width that is too large, or that another value gives")
    _allow(len(str(text)) * (1 + sum(map(_weight, args))))


def _indenting(value: Any, args: list[Any]) -> None:
    _narrow(args)
    widest = max([1, *(len(each) if isinstance(each, str) else each for each in args if isinstance(each, int | str))])
    _allow(widest * (str(value).count("\n") + 1 if isinstance(value, str) else _weight(value)) / 8)


def _adding(values: Any, args: list[Any]) -> None:
    if not all(isinstance(each, int | float) for each in args[-1:]):
        raise TemplateLimit("it adds up what are no numbers")


def _on_text(name: str, text: str, args: list[Any]) -> None:
    """Refuses a method of `text` that would blow it up."""
    if name == "replace":
        _replacing(text, args)
    elif name == "join" and args:
        _joining(text, args[0])
    elif name in ("format", "format_map"):
        _formatting(text, args)
    elif name in ("ljust", "rjust", "center", "zfill"):
        _narrow(args)
    elif name in ("expandtabs", "translate", "maketrans", "encode"):
        raise SecurityError(f"templates may not call `{name}` of a text")


BEFORE: dict[str, Callable[[Any, list[Any]], None]] = {
    "replace": _replacing,
    "join": lambda values, args: _joining(args[0] if args else "", values),
    "format": _formatting,
    "indent": _indenting,
    "tojson": _indenting,
    "sum": _adding,
    "batch": lambda _, args: _narrow(args),
    "slice": lambda _, args: _narrow(args),
    "round": lambda _, args: _narrow(args),
    "truncate": lambda _, args: _narrow(each for each in args if not isinstance(each, int)),
}
"""Filters that are looked at before they run; all of them are measured afterwards."""

NEEDLESS = ("center", "filesizeformat", "pprint", "random", "urlencode", "urlize", "wordwrap", "xmlattr")
"""Filters that no template of a model needs: they blow a text up, or say another thing each time."""

GATHERING = ("join", "list", "sum", "sort", "unique", "min", "max", "tojson", "first", "last")
"""Filters that draw all that a generator yields."""


def _filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    look = BEFORE.get(name)

    @wraps(inner)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _meter()
        meter.step()
        at = sum(isinstance(each, Context | EvalContext | Environment) for each in args[:1])
        value = args[at]
        if name in GATHERING and isinstance(value, Iterator):
            value = list(_steps(value, 0))
        if look is not None:
            look(value, [*args[at + 1 :], *kwargs.values()])
        return meter.measure(inner(*args[:at], value, *args[at + 1 :], **kwargs))

    return run


class _Bounded(NodeTransformer):
    """Rewrites what calls nothing, and so could not be intercepted: loops, literals, `~`, and blocks that are set."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateLimit("recursive loops are not read; write a macro")
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _through("_loop", node.iter, nodes.Const(written))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("_joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return (
            node if all(isinstance(each, nodes.Const) for each in node.iter_child_nodes()) else _through("_made", node)
        )

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("_made", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("_made", node) if node.ctx == "load" else node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "_made", [], [], None, None, lineno=node.lineno)
        return node


def _through(name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """The tag that marks what an assistant wrote. Replies are found without it: most templates have none."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts and measures. The base class denies what reaches out of a template."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Bounded().visit(super()._parse(source, name, filename))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _meter()
        meter.step()
        method = getattr(__obj, "__wrapped__", __obj)  # a sandboxed `format` stands for the method
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _on_text(method.__name__, owner, [*args, *kwargs.values()])
        return meter.measure(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter()
        meter.step()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _allow((len(value) if isinstance(value, str) else _weight(value)) * times)
        elif operator == "**" and not (abs(right) <= 64 and abs(left) <= 2**32):
            raise TemplateLimit("it raises a number to a great power")
        elif operator == "%" and isinstance(left, str):
            _formatting(left, list(right) if isinstance(right, tuple) else [right])
        return meter.measure(super().call_binop(context, operator, left, right))


class _Space(Namespace):
    """A namespace whose names may not reach for what is within."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        for name in (values := dict(*rest, **kwargs)):
            _plain_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        super().__setitem__(name, value)


def _plain_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the name {name!r}")


def _refuse(message: Any) -> None:
    raise TemplateError(str(message)[:500])


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it: without the escapes that pages need."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _loop(values: Any, made: int) -> Any:
    return values if isinstance(values, Undefined) else _Counted(values, made)


def _joined(parts: list[Any]) -> str:
    for part in parts:
        _meter().measure(part)
    return _meter().measure("".join(map(str, parts)))


def _environment() -> _Sandbox:
    found = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, LoopControlExtension],
        finalize=lambda value: _meter().measure(value),
        optimized=False,
    )
    kept = {name: each for name, each in found.filters.items() if name not in NEEDLESS} | {"tojson": _json}
    found.filters = {name: _filter(name, each) for name, each in kept.items()}
    found.filters |= {"_loop": _loop, "_joined": _joined, "_made": lambda value: _meter().measure(value)}
    found.globals = {
        "range": found.globals["range"],
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Space,
        "cycler": found.globals["cycler"],
        "joiner": found.globals["joiner"],
        "raise_exception": _refuse,
    }
    return found


_ENVIRONMENT = _environment()
