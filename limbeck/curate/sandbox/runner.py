"""Runs inside the sandbox, as `python -I -S -c <this file>`: only the standard library, nothing of ours.

The program (a model wrote it) runs in a child process, its tests (they come with the data) in this one. Tests reach the
program's functions through pipes, and get plain data back: so a program cannot change what a test compares, end the run
early, or say that it passed. The child is forked before the tests are read, so they are nowhere in its memory; the file
that they come in and the channel on which the verdict leaves are closed in it before the program starts.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


PLAIN: tuple[Any, ...] = (str, int, float, complex, bytes, list, tuple, set, frozenset, dict)


def encode(value: Any, handles: list[Any]) -> dict[str, Any]:
    """Plain data as JSON (subclasses, such as Counter, as what they are made of); anything else becomes a handle that
    stays where it is."""
    if isinstance(value, Remote):
        return {"t": "own", "v": value._limbeck_number}
    if value is None or isinstance(value, bool):
        return {"v": value}
    kind = next((kind for kind in PLAIN if isinstance(value, kind)), None)
    if kind is None:
        handles.append(value)
        return {"t": "handle", "v": len(handles) - 1}
    if kind is dict:
        return {"t": "dict", "v": [[encode(k, handles), encode(v, handles)] for k, v in dict.items(value)]}
    if kind in (list, tuple, set, frozenset):
        return {"t": kind.__name__, "v": [encode(item, handles) for item in kind.__iter__(value)]}
    return {"t": kind.__name__, "v": kind.__repr__(value)}


def decode(data: dict[str, Any], handle: Callable[[str, int], Any]) -> Any:
    kind, value = data.get("t"), data["v"]
    if kind is None:
        return value
    if kind in ("list", "tuple", "set", "frozenset"):
        items = [decode(item, handle) for item in value]
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
    if kind == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in value}
    if kind == "float":
        return float(value)  # nan and inf are no literals
    if kind in ("int", "complex", "str", "bytes"):
        return ast.literal_eval(value)
    return handle(kind, value)


class Line:
    """Lines of JSON over two pipes."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = os.fdopen(read, "r"), os.fdopen(write, "w")

    def send(self, data: dict[str, Any]) -> None:
        self.write.write(json.dumps(data) + "\n")
        self.write.flush()

    def receive(self) -> dict[str, Any]:
        line = self.read.readline()
        if not line:
            raise EOFError("the program has ended")
        return json.loads(line)


class Remote:
    """An object of the program, seen by its tests: it can be called and asked for attributes and items."""

    _limbeck_line: Line
    _limbeck_number: int

    def __init__(self, line: Line, number: int) -> None:
        self.__dict__.update(_limbeck_line=line, _limbeck_number=number)

    def _limbeck_do(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        handles = []
        names = {name: encode(value, handles) for name, value in kwargs.items()}
        request = {"on": self._limbeck_number, "do": verb, "args": [encode(a, handles) for a in args], "kwargs": names}
        if handles:
            raise TypeError("a test gives the program an object that is not plain data")
        self._limbeck_line.send(request)
        answer = self._limbeck_line.receive()
        if "error" in answer:
            raise error_of(answer["error"], answer["text"])
        for item, now in zip(args, answer["args"], strict=False):
            if now is not None:  # a function may change what it is given
                replace(item, decode(now, self._limbeck_handle))
        return decode(answer["value"], self._limbeck_handle)

    def _limbeck_handle(self, _kind: str, number: int) -> Remote:
        return Remote(self._limbeck_line, number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._limbeck_do("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._limbeck_do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._limbeck_do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._limbeck_do("getitem", key)

    def __bool__(self) -> bool:
        return self._limbeck_do("bool")

    def __len__(self) -> int:
        return self._limbeck_do("len")

    def __iter__(self) -> Any:
        return iter(self._limbeck_do("list"))

    def __str__(self) -> str:
        return self._limbeck_do("str")


def replace(item: Any, now: Any) -> None:
    """Make a list, dict or set what it has become."""
    if isinstance(item, list):
        item[:] = now
    elif isinstance(item, (dict, set)):
        item.clear()
        item.update(now)


def names_for(tests: list[str], offered: dict[str, Any]) -> dict[str, Any]:
    """What tests see of a program. Names of Python's own (a program's own `set`) only where tests use no other: else a
    program could compare its answers itself."""
    used = set()
    for test in tests:
        try:
            used |= {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
        except SyntaxError:  # told when the test runs
            continue
    own = {name for name in offered if not hasattr(builtins, name)}
    return {name: value for name, value in offered.items() if name in own or not used & own}


def error_of(name: str, text: str) -> Exception:
    """An error of the program's, of the same built-in type where it is one."""
    kind = getattr(builtins, name, None)
    return kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(f"{name}: {text}")


VERBS = {
    "call": lambda it, *args, **kwargs: it(*args, **kwargs),
    "getattr": lambda it, name: getattr(it, name),
    "setattr": lambda it, name, value: setattr(it, name, value),
    "getitem": lambda it, key: it[key],
    "bool": lambda it: bool(it),
    "len": lambda it: len(it),
    "list": lambda it: list(it),
    "str": lambda it: str(it),
}


def serve(program: str, line: Line) -> None:
    """The child: run the program, then answer for its names until the tests hang up."""
    space = {"__name__": "program"}
    objects = []

    def own(_kind, number):
        return objects[number]

    try:
        exec(compile(program, "program.py", "exec"), space)
    except BaseException as error:
        line.send({"error": type(error).__name__, "text": str(error)[:500]})
        return
    names = {name: encode(value, objects) for name, value in space.items() if not name.startswith("__")}
    line.send({"names": names})
    while True:
        request = line.receive()
        try:
            args = [decode(item, own) for item in request["args"]]
            kwargs = {name: decode(item, own) for name, item in request["kwargs"].items()}
            value = VERBS[request["do"]](objects[request["on"]], *args, **kwargs)
            changed = [encode(item, objects) if isinstance(item, (list, dict, set)) else None for item in args]
            line.send({"value": encode(value, objects), "args": changed})
        except Exception as error:
            line.send({"error": type(error).__name__, "text": str(error)[:500]})


def main() -> None:
    source, out = int(sys.argv[1]), int(sys.argv[2])
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    sys.stdout.flush()
    if os.fork() == 0:  # before the tests are read: a program that looks through its frames must not find them
        os.close(source)
        os.close(out)
        os.close(up_read)
        os.close(down_write)
        try:
            line = Line(down_read, up_write)
            serve(line.receive()["program"], line)
        finally:
            os._exit(0)
    os.close(up_write)
    os.close(down_read)
    with os.fdopen(source, "rb") as file:
        task = json.loads(file.read())
    line = Line(up_read, down_write)
    line.send({"program": task["program"]})
    verdict = judge(task["tests"], line)
    os.write(out, json.dumps(verdict).encode())


def judge(tests: list[str], line: Line) -> dict[str, Any]:
    try:
        ready = line.receive()
        if "error" in ready:
            return {"ok": False, "reason": f"the program raised {ready['error']}: {ready['text']}"}
        space: dict[str, Any] = {"__name__": "tests"}
        for name, value in names_for(tests, ready["names"]).items():
            space[name] = decode(value, lambda _kind, number: Remote(line, number))
        for number, test in enumerate(tests, 1):
            try:
                exec(compile(test, f"test {number}", "exec"), space)
            except AssertionError as error:
                return {"ok": False, "reason": f"test {number} failed: {str(error) or test.strip()[:200]}"}
            except (EOFError, BrokenPipeError, ValueError) as error:
                return {"ok": False, "reason": f"test {number}: {error}"[:500]}
            except Exception as error:
                return {"ok": False, "reason": f"test {number} raised {type(error).__name__}: {error}"[:500]}
    except (EOFError, BrokenPipeError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"ok": False, "reason": f"the program has ended before its tests ({error})"[:500]}
    return {"ok": True, "reason": f"{len(tests)} tests passed"}


if __name__ == "__main__":
    main()
