"""What goes over the pipes between a program and its tests: plain data, and objects that stay where they are.

Runs inside the sandbox (`runner`): only the standard library, nothing of ours but its neighbours.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


PLAIN: tuple[Any, ...] = (str, int, float, complex, bytes, bytearray, list, tuple, set, frozenset, dict)
GROUPS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
ERRORS = {name: it for name, it in vars(builtins).items() if isinstance(it, type) and issubclass(it, Exception)}
TYPES = {kind.__name__: kind for kind in PLAIN} | ERRORS
VALUES: dict[str, Callable[[Any], list[Any]]] = {
    "fractions.Fraction": lambda it: [it.numerator, it.denominator],
    "decimal.Decimal": lambda it: [str(it)],
    "datetime.timedelta": lambda it: [it.days, it.seconds, it.microseconds],
    "datetime.date": lambda it: [it.year, it.month, it.day],
    "datetime.time": lambda it: [it.hour, it.minute, it.second, it.microsecond],
    "datetime.datetime": lambda it: [*it.timetuple()[:6], it.microsecond],
    "collections.deque": lambda it: [list(it)],
    "builtins.range": lambda it: [it.start, it.stop, it.step],
}
"""Types of the standard library whose values cross the pipe: what each is made of."""


def kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


class Handles:
    """Objects that stay where they are, by number; one object has one number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]


def encode(value: Any, handles: Handles) -> dict[str, Any]:
    """Plain data as JSON (subclasses, such as Counter, as what they are made of); anything else becomes a handle that
    stays where it is."""
    if isinstance(value, Remote):
        return {"t": "own", "v": value._limbeck_number}
    if value is None or isinstance(value, bool):
        return {"v": value}
    kind = next((kind for kind in PLAIN if isinstance(value, kind)), None)
    if kind is None:
        return _other(value, handles)
    if kind is dict:
        return {"t": "dict", "v": [[encode(k, handles), encode(v, handles)] for k, v in dict.items(value)]}
    if kind.__name__ in GROUPS:
        data: dict[str, Any] = {"t": kind.__name__, "v": [encode(item, handles) for item in kind.__iter__(value)]}
        fields = getattr(type(value), "_fields", None) if kind is tuple else None
        return data | {"fields": list(fields)} if fields else data
    return {"t": kind.__name__, "v": kind.__repr__(value)}


def _other(value: Any, handles: Handles) -> dict[str, Any]:
    name = kind_of(value)
    if name in VALUES and not getattr(value, "tzinfo", None):
        return {"t": name, "v": [encode(part, handles) for part in VALUES[name](value)]}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"t": "type", "v": value.__name__}
    if isinstance(value, types.ModuleType):
        return {"t": "module", "v": handles.number(value)}
    data = {"t": "handle", "v": handles.number(value), "from": str(getattr(value, "__module__", ""))}
    return data | {"error": bases_of(value), "name": value.__name__} if _is_error(value) else data


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def bases_of(kind: type) -> list[str]:
    return [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"]


def decode(data: dict[str, Any], handle: Callable[[dict[str, Any]], Any]) -> Any:
    kind, value = data.get("t"), data["v"]
    if kind is None:
        return value
    if kind in GROUPS:
        items = [decode(item, handle) for item in value]
        return _named(data["fields"], items) if data.get("fields") else GROUPS[kind](items)
    if kind == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in value}
    if kind in ("float", "complex"):
        return {"float": float, "complex": complex}[kind](value)  # nan and inf are no literals
    if kind == "bytearray":
        return bytearray(ast.literal_eval(str(value)[len("bytearray(") : -1]))
    if kind in ("int", "str", "bytes"):
        return ast.literal_eval(value)
    if kind in VALUES:
        module, _, name = kind.partition(".")
        return getattr(importlib.import_module(module), name)(*[decode(part, handle) for part in value])
    if kind == "type":
        return TYPES[value]
    return handle(data)


def _named(fields: list[str], items: list[Any]) -> Any:
    from collections import namedtuple

    return namedtuple("named", fields)(*items)


class Gone(BaseException):
    """The program has ended, or talks nonsense. Not an Exception: a test that expects some error must not take this
    one for it."""


class Unsure(BaseException):
    """What a test wants of the program does not cross the pipe."""


class Line:
    """Lines of JSON over two pipes. At the tests' end it notes whether the program was asked anything, whether it went
    away, and what could not be told: no test can catch its way around that."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = os.fdopen(read, "r"), os.fdopen(write, "w")
        self.asked, self.gone, self.unsure = 0, "", ""
        self.errors: dict[int, type[Exception]] = {}

    def send(self, data: dict[str, Any]) -> None:
        self.write.write(json.dumps(data) + "\n")
        self.write.flush()

    def receive(self) -> dict[str, Any]:
        line = self.read.readline()
        if not line:
            raise EOFError("the program has ended")
        return json.loads(line)

    def ask(self, request: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Any:
        """What the program answers, read; Gone where that is no answer."""
        self.asked += 1
        try:
            self.send(request)
            return read(self.receive())
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self.gone = f"the program has ended before its tests ({error})"
            raise Gone(self.gone) from None

    def doubt(self, why: str) -> Unsure:
        self.unsure = self.unsure or why
        return Unsure(why)


class Remote:
    """An object of the program, seen by its tests: it can be called, looped over, and asked for attributes and items.
    It compares with nothing and computes nothing: what the program would answer to that is no evidence."""

    _limbeck_line: Line
    _limbeck_number: int

    def __init__(self, line: Line, number: int) -> None:
        self.__dict__.update(_limbeck_line=line, _limbeck_number=number)

    def _limbeck_do(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        line, handles = self._limbeck_line, Handles()
        names = {name: encode(value, handles) for name, value in kwargs.items()}
        request = {"on": self._limbeck_number, "do": verb, "args": [encode(a, handles) for a in args], "kwargs": names}
        if handles.objects:
            raise line.doubt("a test gives the program an object that is not plain data")
        kind, value, changed = line.ask(request, self._limbeck_read)
        for item, now in zip(args, changed, strict=False):
            if now is not None:  # a function may change what it is given
                replace(item, now)
        if kind == "error":
            raise value
        return value

    def _limbeck_read(self, answer: dict[str, Any]) -> tuple[str, Any, list[Any]]:
        changed = [None if item is None else decode(item, self._limbeck_handle) for item in answer["args"]]
        if "error" in answer:
            return "error", error_of(answer, self._limbeck_line), changed
        return "value", decode(answer["value"], self._limbeck_handle), changed

    def _limbeck_handle(self, data: dict[str, Any]) -> Any:
        return handle_of(data, self._limbeck_line)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._limbeck_do("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Protocols of numpy, copy and others look for these, and would let the program answer for them.
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__doc__", "__annotations__"):
            raise AttributeError(name)
        return self._limbeck_do("getattr", name)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            raise self._limbeck_line.doubt("a test compares two objects of the program's own")
        if self._limbeck_do("own_eq"):
            raise self._limbeck_line.doubt("a test compares an object of the program's by the program's own __eq__")
        return False

    def __instancecheck__(self, one: Any) -> bool:
        return isinstance(one, Remote) and bool(self._limbeck_do("has_instance", one))


def _forwarded(verb: str) -> Callable[..., Any]:
    return lambda self, *args: self._limbeck_do(verb, *args)


def _refused(name: str) -> Callable[..., Any]:
    def method(self, *_):
        raise self._limbeck_line.doubt(f"a test computes with an object of the program's own ({name})")

    return method


FORWARDED = "setattr getitem setitem delitem bool len str contains next enter exit"
REFUSED = "hash lt le gt ge int float complex index round neg pos abs invert reduce_ex fspath"
ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _name in FORWARDED.split():
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in [*REFUSED.split(), *ARITHMETIC.split(), *(f"r{name}" for name in ARITHMETIC.split())]:
    setattr(Remote, f"__{_name}__", _refused(_name))
Remote.__iter__ = lambda self: iter(self._limbeck_do("list"))  # type: ignore[attr-defined]


def handle_of(data: dict[str, Any], line: Line) -> Any:
    number = int(data["v"])
    if "error" in data:
        return error_class(number, str(data["name"]), data["error"], line)
    return Remote(line, number)


def error_class(number: int, name: str, bases: list[str], line: Line) -> type[Exception]:
    """An exception class of the program's as one that tests can expect."""
    if number not in line.errors:
        line.errors[number] = type(name, (_built_in(bases),), {"_limbeck_remote": True})
    return line.errors[number]


def _built_in(names: list[str]) -> type[Exception]:
    kind = next((ERRORS[name] for name in names if name in ERRORS), Exception)
    # Inside `map` and `zip` such an error would end the loop as if all had been compared.
    return RuntimeError if issubclass(kind, (StopIteration, StopAsyncIteration)) else kind


def error_of(answer: dict[str, Any], line: Line) -> Exception:
    """An error of the program's, of the same class where tests can name it."""
    text = f"{answer['text']}"
    if answer["own"] is not None:
        kind = error_class(int(answer["own"]), str(answer["error"]), answer["bases"], line)
    else:
        kind = _built_in([answer["error"]])
    if "StopIteration" in answer["bases"]:
        line.doubt("a test looks for the end of an iterator of the program's")
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError wants five arguments
        error = RuntimeError(f"{answer['error']}: {text}")
    error.__dict__["_limbeck_remote"] = True
    return error


def replace(item: Any, now: Any) -> None:
    """Make a list, dict or set what it has become."""
    if isinstance(item, list):
        item[:] = now
    elif isinstance(item, (dict, set)):
        item.clear()
        item.update(now)
