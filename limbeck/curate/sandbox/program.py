"""The process of the program: it runs it, and then answers for its names. Nothing that it says is believed.

Runs inside the sandbox (`runner`): only the standard library, nothing of ours but its neighbours.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from limbeck.curate.sandbox.wire import Handles, Line, bases_of, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable


VERBS: dict[str, Callable[..., Any]] = {
    "call": lambda it, *args, **kwargs: it(*args, **kwargs),
    "getattr": lambda it, name: getattr(it, name),
    "setattr": lambda it, name, value: setattr(it, name, value),
    "getitem": lambda it, key: it[key],
    "setitem": lambda it, key, value: it.__setitem__(key, value),
    "delitem": lambda it, key: it.__delitem__(key),
    "contains": lambda it, item: item in it,
    "enter": lambda it: it.__enter__(),
    "exit": lambda it, *_: it.__exit__(None, None, None),
    "next": lambda it: next(it),
    "bool": lambda it: bool(it),
    "len": lambda it: len(it),
    "list": lambda it: list(it),
    "str": lambda it: str(it),
    "own_eq": lambda it: type(it).__eq__ is not object.__eq__,
    "has_instance": lambda it, one: isinstance(one, it),
}


def serve(program: str, line: Line) -> None:
    """The child: run the program, then answer for its names until the tests hang up."""
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look there for what a class belongs to
    handles = Handles()
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        line.send(_told(error, handles))
        return
    names = {name: encode(value, handles) for name, value in vars(module).items() if not name.startswith("__")}
    line.send({"names": names})
    while True:
        request = line.receive()
        args: list[Any] = []
        try:
            args += [decode(item, lambda data: handles.objects[data["v"]]) for item in request["args"]]
            named = {k: decode(v, lambda data: handles.objects[data["v"]]) for k, v in request["kwargs"].items()}
            answer = {"value": encode(VERBS[request["do"]](handles.objects[request["on"]], *args, **named), handles)}
        except Exception as error:
            answer = _told(error, handles)
        changed = [encode(item, handles) if isinstance(item, (list, dict, set)) else None for item in args]
        line.send(answer | {"args": changed})


def _told(error: BaseException, handles: Handles) -> dict[str, Any]:
    kind = type(error)
    own = None if kind.__module__ == "builtins" else handles.number(kind)
    return {"error": kind.__name__, "text": str(error)[:500], "own": own, "bases": bases_of(kind)}
