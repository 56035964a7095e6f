"""A verdict is the tests' own: what their names mean, that all of them ran, and that no program talks its way past them."""

# ruff: noqa: E501 (programs and calls stand on one line, as a table)
from __future__ import annotations

import ast

import pytest

from limbeck.curate.sandbox.run import ProgramOutcome, SandboxLimits, run_tests, unavailable

WHY = unavailable("bwrap")
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"no sandbox here: {WHY}")
LIMITS = SandboxLimits(seconds=10.0)


def run(program: str, *tests: str, entry_point: str | None = None) -> ProgramOutcome:
    return run_tests(program, tests, LIMITS, entry_point=entry_point)


# ---- what tests look like --------------------------------------------------------------------------------------------


TESTS = {
    "equal": "assert f(3) == 9",
    "the other way round": "assert 9 == f(3)",
    "not unequal": "assert not f(3) != 9",
    "near": "assert abs(f(3) - 9) < 1e-6",
    "nearer": "assert -1e-6 < f(3) - 9 < 1e-6",
    "isclose": "import math\nassert math.isclose(f(3), 9)",
    "isclose, not imported": "assert math.isclose(f(3), 9)",
    "isclose, from the module": "from math import isclose as close\nassert close(f(3), 9)",
    "sorted": "assert sorted([f(3), 1]) == sorted([9, 1])",
    "a set": "assert set([f(3)]) == {9}",
    "its type": "assert isinstance(f(3), int) and type(f(3)) is int and f(3) == 9",
    "a loop": "for n in range(1, 4):\n    assert f(n) == n * n",
    "inputs and results": "for x, y in zip([2, 3], [4, 9]):\n    assert f(x) == y",
    "all": "assert all(f(x) == y for x, y in [(2, 4), (3, 9)])",
    "none differs": "assert not any(f(x) != y for x, y in [(2, 4), (3, 9)])",
    "map of comparisons": "assert all(map(lambda pair: f(pair[0]) == pair[1], [(2, 4), (3, 9)]))",
    "filter of failures": "assert not list(filter(lambda n: f(n) != n * n, [2, 3]))",
    "map": "assert list(map(f, [2, 3])) == [4, 9]",
    "a comprehension": "assert {n: f(n) for n in (2, 3)} == {2: 4, 3: 9}",
    "largest": "assert max(f(2), f(3)) == 9 == min(f(3), 10)",
    "sum": "assert sum(f(n) for n in (2, 3)) == 13",
    "rounded": "assert round(f(3)) == 9",
    "as text": "assert str(f(3)) == repr(f(3)) == f'{f(3)}' == '9'",
    "as JSON": "import json\nassert json.dumps(f(3)) == '9'",
    "as a number": "assert int(f(3)) == 9 and float(f(3)) == 9.0",
    "in a list": "assert f(3) in [9] and [f(3)].index(9) == 0",
    "counted": "assert Counter([f(3)]) == Counter([9])",
    "unittest": "import unittest\nclass Case(unittest.TestCase):\n    def test_it(self):\n"
    "        self.assertEqual(f(3), 9)\n        self.assertAlmostEqual(f(3), 9)\nassert run_case(Case)",
    "operator": "import operator\nassert operator.eq(f(3), 9)",
    "match": "match f(3):\n    case 9:\n        pass\n    case _:\n        raise AssertionError",
    "errors are expected": "try:\n    value = f(3)\nexcept Exception:\n    value = None\nassert value == 9",
    "errors are not": "import contextlib\nseen = []\nwith contextlib.suppress(ValueError):\n    seen.append(f(3))\n"
    "assert seen == [9]",
    "deep": "import copy\nassert copy.deepcopy([f(3)]) == [9]",
    "dis": "import decimal, fractions\nassert fractions.Fraction(f(3)) == 9 == decimal.Decimal(f(3))",
}

HEAD = """
import sys, unittest
frame = sys._getframe()
while "line" not in frame.f_locals:
    frame = frame.f_back
judged = frame.f_locals["line"]
def run_case(case):
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result.wasSuccessful() and result.testsRun
"""
ONE = """
def one_{number}():
{body}
judged.unsure = ""
try:
    one_{number}()
    if not judged.unsure and not judged.gone:
        print("PASSED {name}")
except BaseException:
    pass
"""


def all_tests() -> str:
    """Every kind of test in one source, which prints the names of those that passed."""
    parts = [
        ONE.format(number=number, name=name, body="\n".join(f"    {line}" for line in text.splitlines()))
        for number, (name, text) in enumerate(TESTS.items())
    ]
    return HEAD + "".join(parts) + "\nassert f(3) == 9\n"


def passed(found: ProgramOutcome) -> list[str]:
    return [line.removeprefix("PASSED ") for line in found.output.splitlines() if line.startswith("PASSED ")]


def test_a_right_program_passes_every_kind_of_test():
    found = run("from collections import Counter\ndef f(x): return x * x", all_tests())
    assert passed(found) == list(TESTS) and found.ok, set(TESTS) - set(passed(found))


# ---- attacks ---------------------------------------------------------------------------------------------------------


# What every attack below may use: the runner's own pipe, found in the frames.
PIPE = """
import os, signal, sys
frame = sys._getframe()
while "line" not in frame.f_locals:
    frame = frame.f_back
line, handles = frame.f_locals["line"], frame.f_locals["handles"]
HANDLE = {"t": "handle", "v": 0}
def data(it):
    from limbeck.curate.sandbox.wire import encode
    return encode(it, handles)
def offer(value, **names):
    line.send({"names": {"f": HANDLE} | names})
    while True:
        line.receive()
        line.send({"value": value, "args": []})
def f(x): return 0
"""
TRUE, ZERO = '{"v": True}', "data(0)"
WORLD = [
    "abs",
    "all",
    "any",
    "bool",
    "dict",
    "enumerate",
    "filter",
    "float",
    "frozenset",
    "getattr",
    "hash",
    "id",
    "int",
    "isinstance",
    "iter",
    "len",
    "list",
    "map",
    "max",
    "min",
    "next",
    "object",
    "print",
    "range",
    "repr",
    "reversed",
    "round",
    "set",
    "sorted",
    "str",
    "sum",
    "super",
    "tuple",
    "type",
    "zip",
    "Exception",
    "AssertionError",
]
FORGED_NAMES = f"dict.fromkeys({WORLD!r}, HANDLE)"
ALWAYS = "__eq__ __lt__ __le__ __gt__ __ge__ __bool__ __contains__ __instancecheck__"
ARITHMETIC = "__add__ __sub__ __rsub__ __radd__ __mul__ __abs__ __neg__ __round__ __int__ __float__ __index__ __hash__"


def liar(base: str, made: str) -> str:
    """A class whose every comparison is true, and whose every result is what would be right; `f` returns one."""
    lines = [f"    {name} = lambda *a: True" for name in ALWAYS.split()] + ["    __ne__ = lambda *a: False"]
    lines += [f"    {name} = lambda *a: 9" for name in ARITHMETIC.split()]
    lines += ["    __str__ = __repr__ = lambda *a: '9'", "    __format__ = lambda *a: '9'"]
    return f"class Liar({base}):\n" + "\n".join(lines) + f"\ndef f(x): return {made}"


ATTACKS = {
    # names of the tests' own world
    "__builtins__ as a dict": f'names = {FORGED_NAMES}\noffer({TRUE}, __builtins__={{"t": "dict", "v": '
    "[[data(k), v] for k, v in names.items()]})",
    "__builtins__ as an object": f"offer({TRUE}, __builtins__=HANDLE)",
    "__builtins__ as a module": f'offer({TRUE}, __builtins__={{"t": "module", "v": 0}})',
    "__builtins__ with right values": f'names = {FORGED_NAMES}\noffer({ZERO}, __builtins__={{"t": "dict", "v": '
    "[[data(k), v] for k, v in names.items()]})",
    "names of builtins, all true": f"offer({TRUE}, **{FORGED_NAMES})",
    "names of builtins, all zero": f"offer({ZERO}, **{FORGED_NAMES})",
    "names of builtins, all empty": f"offer(data([]), **{FORGED_NAMES})",
    "names of builtins, as data": f"offer({ZERO}, **dict.fromkeys({WORLD!r}, data(9)))",
    "names of builtins, as types": f'offer({ZERO}, **dict.fromkeys({WORLD!r}, {{"t": "type", "v": "dict"}}))',
    "dunder names": f"offer({TRUE}, **dict.fromkeys(['__import__', '__build_class__', '__name__', '__debug__', "
    "'__spec__', '__loader__', '__annotations__', '__getattr__'], HANDLE))",
    "modules as objects": f"offer({TRUE}, math=HANDLE, json=HANDLE, unittest=HANDLE, operator=HANDLE, copy=HANDLE, "
    "Counter=HANDLE, isclose=HANDLE, contextlib=HANDLE, fractions=HANDLE, sys=HANDLE)",
    "modules as modules": f'offer({TRUE}, **dict.fromkeys(["math", "json", "Counter", "operator", "sys"], '
    '{"t": "module", "v": 0}))',
    "names from the standard library, it says": f'offer({TRUE}, Counter=HANDLE | {{"from": "collections"}}, '
    'f=HANDLE | {"from": "operator"}, math=HANDLE | {"from": "math"})',
    "names from modules that are not there": f'offer({TRUE}, Counter=HANDLE | {{"from": "no.such"}}, '
    'f=HANDLE | {"from": "../etc"})',
    "the tests' own helpers": f"offer({TRUE}, run_case=HANDLE, value=HANDLE, seen=HANDLE, case=HANDLE, judged=HANDLE)",
    "a module of one's own": "class math:\n    isclose = lambda *a: True\nclass Counter(dict):\n"
    "    __eq__ = lambda *a: True",
    "functions of one's own": "def abs(x): return 0\ndef sorted(x): return []\ndef set(x): return 0\n"
    "def isinstance(*a): return True\ndef range(*a): return []\ndef zip(*a): return []\ndef all(x): return True\n"
    "def any(x): return False\ndef max(*a): return 9\ndef sum(x): return 13\ndef str(x): return '9'",
    "a star from a module of one's own": "import types\nm = types.ModuleType('m')\nm.abs = lambda x: 0\n"
    "m.__all__ = ['abs', '__builtins__']\nsys.modules['m'] = m\nfrom m import abs",
    # answers that are no data
    "f is a type": 'offer(data(9), f={"t": "type", "v": "dict"})',
    "f is an error": 'offer(data(9), f={"t": "handle", "v": 0, "error": ["Exception"], "name": "f"})',
    "f is a module": f'offer({TRUE}, f={{"t": "module", "v": 0}})',
    "f is data": f"offer({TRUE}, f=data(0))",
    "an answer of a type that is none": 'offer({"t": "os.system", "v": "true"})',
    "an answer of code": 'offer({"t": "int", "v": "__import__(\'os\')._exit(0)"})',
    "an answer without a value": "offer({})",
    "an answer that is a handle of nothing": 'offer({"t": "handle", "v": -1})',
    "an answer that is text": 'offer({"t": "handle", "v": "x"})',
    "an answer as deep as it gets": 'offer({"t": "list", "v": [] } if 0 else eval(\'{"t":"list","v":[\' * 90 + '
    "'{\"v\":9}' + ']}' * 90))",
    "a range that is all": 'offer({"t": "builtins.range", "v": [{"v": 0}, {"v": 10**9}, {"v": 1}]})',
    "a tuple whose fields are methods": 'offer({"t": "tuple", "v": [{"v": 0}], "fields": ["__eq__"]})',
    "a dict for a fraction": 'offer({"t": "fractions.Fraction", "v": [{"v": True}, {"v": False}]})',
    "not a number": "offer({'t': 'float', 'v': 'nan'})",
    "true": f"offer({TRUE})",
    "nothing": 'offer({"v": None})',
    "not JSON": "line.send({'names': {'f': HANDLE}})\nline.receive()\nos.write(line.write.fileno(), b'9\\n')\n"
    "os._exit(0)",
    "a null byte": "line.send({'names': {'f': HANDLE}})\nos.write(line.write.fileno(), b'\\0\\n' * 1000)",
    "a second list of names": f"line.send({{'names': {{'f': HANDLE}}}})\nline.send({{'names': {FORGED_NAMES}}})\n"
    f"offer({TRUE})",
    "answers before questions": "line.send({'names': {'f': HANDLE}})\nfor n in range(3000):\n"
    "    line.send({'value': {'v': True}, 'args': []})",
    "names that are no names": f"offer({TRUE}, **{{'': HANDLE, 'a b': HANDLE, 'None': HANDLE, 'assert': HANDLE}})",
    "no names at all": "line.send({})",
    "names in a list": "line.send({'names': [['f', HANDLE]]})",
    "an error without a name": "line.send({'error': 'x'})",
    "a verdict for names": "line.send({'ok': True, 'reason': 'passed'})",
    "arguments that were not given": "line.send({'names': {'f': HANDLE}})\nwhile True:\n    line.receive()\n"
    "    line.send({'value': {'v': 0}, 'args': [data([9])] * 9})",
    # errors that end what they should not
    **{
        f"raises {name}": f"def f(x): raise {name}"
        for name in (
            "StopIteration",
            "StopAsyncIteration",
            "GeneratorExit",
            "KeyboardInterrupt",
            "SystemExit(0)",
            "AssertionError",
            "ValueError",
            "EOFError",
            "RecursionError",
            "MemoryError",
            "UnicodeDecodeError",
            "BaseException",
            "ExceptionGroup('x', [ValueError()])",
            "NotImplementedError",
            "Warning",
        )
    },
    "raises one's own end of a loop": "class End(StopIteration): pass\ndef f(x): raise End",
    "raises one that is several": "class Both(ValueError, StopIteration): pass\ndef f(x): raise Both",
    "raises an error that cannot be told": "class Odd(Exception):\n    def __str__(self): raise self\n"
    "def f(x): raise Odd",
    "says that an error is another": "line.send({'names': {'f': HANDLE}})\nwhile True:\n    line.receive()\n"
    "    line.send({'error': 'StopIteration', 'text': '', 'own': None, 'bases': [], 'args': []})",
    "says that its own error ends loops": "line.send({'names': {'f': HANDLE}})\nwhile True:\n    line.receive()\n    "
    "line.send({'error': 'E', 'text': '', 'own': 1, 'bases': ['StopIteration', 'Exception'], 'args': []})",
    "says that an error is no error": "line.send({'names': {'f': HANDLE}})\nwhile True:\n    line.receive()\n    "
    "line.send({'error': 'print', 'text': '', 'own': None, 'bases': ['SystemExit', 'print'], 'args': []})",
    # objects that lie
    **{
        f"a lying {base}": liar(base, made)
        for base, made in {
            "object": "Liar()",
            "int": "Liar(0)",
            "float": "Liar(0)",
            "str": "Liar('0')",
            "list": "Liar([0])",
            "tuple": "Liar((0,))",
            "dict": "Liar()",
            "set": "Liar()",
            "bytes": "Liar(b'0')",
            "complex": "Liar(0)",
            "frozenset": "Liar()",
            "Exception": "Liar()",
        }.items()
    },
    "a lying fraction": "import fractions\n" + liar("fractions.Fraction", "Liar(0)"),
    "a lying decimal": "import decimal\n" + liar("decimal.Decimal", "Liar(0)"),
    "a lying class": "class Meta(type):\n    __eq__ = __lt__ = __gt__ = __instancecheck__ = lambda *a: True\n"
    "    __sub__ = lambda *a: 0\n    __hash__ = lambda *a: 9\nclass f(metaclass=Meta):\n    def __init__(self, x): pass",
    "a lying class of numbers": "class L:\n    __class__ = int\n    __eq__ = lambda *a: True\n    __hash__ = lambda s: 9\n"
    "def f(x): return L()",
    "a mock": "from unittest.mock import MagicMock\nit = MagicMock()\nit.__eq__ = lambda *a: True\ndef f(x): return it",
    "anything": "from unittest.mock import ANY\ndef f(x): return ANY",
    "an array of one's own": "class A:\n    __array_interface__ = {'shape': (1,), 'typestr': '<i8', 'data': (0, True), "
    "'version': 3}\n    __array__ = lambda *a, **k: [9]\n    __eq__ = lambda *a: True\ndef f(x): return A()",
    "one that reduces to code": "class R:\n    def __reduce_ex__(self, p): return (int, ('9',))\n"
    "    __deepcopy__ = lambda *a: 9\n    __eq__ = lambda *a: True\ndef f(x): return R()",
    "an enum": "import enum\nclass E(enum.IntEnum):\n    A = 0\n    __eq__ = lambda *a: True\n    __hash__ = lambda s: 9\n"
    "def f(x): return E.A",
    "itself": "def f(x): return f",
    "an endless list": "def f(x):\n    a = [0]\n    a.append(a)\n    return a",
    "an endless generator": "def f(x):\n    while True: yield 9",
    "a coroutine": "async def f(x): return 9",
    "a tuple with names": "from collections import namedtuple\nT = namedtuple('T', 'index count')\n"
    "def f(x): return T(9, 9)",
    "a property that changes": "class P:\n    n = 0\n    def __getattr__(self, k):\n        P.n += 1\n        return P.n\n"
    "    __eq__ = lambda *a: True\ndef f(x): return P()",
    # the process
    "builtins patched": "import builtins\nfor n in ('abs', 'sorted', 'isinstance', 'set', 'zip', 'all'):\n"
    "    setattr(builtins, n, lambda *a: 0)\nbuiltins.compile = lambda *a, **k: compile('pass', 'x', 'exec')",
    "modules patched": "import math, json, collections, operator, copy, decimal, fractions\nmath.isclose = lambda *a, **k: "
    "True\njson.dumps = lambda *a: '9'\noperator.eq = lambda *a: True\ncopy.deepcopy = lambda x: [9]\n"
    "collections.Counter = dict",
    "sys.modules patched": "import types\nfor n in ('math', 'json', 'unittest', 'operator', 'copy'):\n"
    "    m = types.ModuleType(n)\n    m.__getattr__ = lambda name: (lambda *a, **k: True)\n    sys.modules[n] = m",
    "import hooks": "class H:\n    def find_spec(self, *a): raise ImportError\nsys.meta_path.insert(0, H())\n"
    "sys.path.insert(0, '/tmp')\nopen('/tmp/math.py', 'w').write('isclose = lambda *a: True')",
    "files that shadow modules": "for n in ('math', 'json', 'unittest', 'operator', 'copy', 'sitecustomize'):\n"
    "    open(f'/tmp/{n}.py', 'w').write('isclose = eq = dumps = lambda *a: True')",
    "the judge's code patched": "from limbeck.curate.sandbox import wire\nwire.Line.doubt = lambda *a: None\n"
    "wire.decode = lambda *a: 9\nwire.Remote.__eq__ = lambda *a: True",
    "the line's notes changed": "line.asked, line.gone, line.unsure = 99, '', ''",
    "objects of the collector changed": "import gc\nfor it in gc.get_objects():\n    if type(it) is dict and 'ok' in it:\n"
    "        it['ok'] = True",
    "a trace": "def trace(frame, event, arg):\n    frame.f_locals.clear()\n    return trace\nsys.settrace(trace)",
    "a profile": "sys.setprofile(lambda *a: None)\nimport threading\nthreading.setprofile(lambda *a: None)",
    "at exit": 'import atexit\natexit.register(lambda: os.write(1, b\'{"ok": true, "reason": ""}\'))\nsys.exit(0)',
    "an exit without an error": "os._exit(0)",
    "an exit when asked": "def f(x): os._exit(0)",
    "an exit of another thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)))"
    ".start()",
    "execs something else": "os.execv('/bin/true', ['true'])",
    "a hook on errors": "sys.excepthook = sys.unraisablehook = lambda *a: None\nsys.displayhook = lambda *a: None",
    "closes all": "os.closerange(0, 64)",
    "writes on all that is open": 'for n in range(64):\n    try: os.write(n, b\'{"ok": true, "reason": ""}\\n\')\n'
    "    except OSError: pass",
    "writes when asked": 'def f(x):\n    for n in range(64):\n        try: os.write(n, b\'{"ok": true, "reason": ""}\\n\')'
    "\n        except OSError: pass\n    return 0",
    "a fork that answers too": f"if os.fork() == 0: offer({TRUE})",
    "threads that answer too": "import threading\nfor n in range(8):\n    threading.Thread(target=offer, "
    f"args=({TRUE},), daemon=True).start()",
    "kills its judge": "os.kill(os.getppid(), signal.SIGKILL)",
    "kills its judge when asked": "def f(x): os.kill(os.getppid(), signal.SIGKILL)",
    **{
        f"sends its judge {name}": f"def f(x):\n    os.kill(os.getppid(), signal.{name})\n    return 0"
        for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGSEGV", "SIGHUP", "SIGPIPE")
    },
    "lowers its judge's limits": "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_AS, (1 << 20, 1 << 20))",
    "reads its judge's memory": "try: open(f'/proc/{os.getppid()}/mem', 'r+b').write(b'9')\nexcept OSError: pass",
    "writes its judge's memory": "import ctypes\nctypes.CDLL(None).syscall(311, os.getppid(), 0, 0, 0, 0, 0)",
    "traces its judge": "import ctypes\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
    "takes its judge's files": "import ctypes\nfd = os.pidfd_open(os.getppid())\nfor n in range(64):\n"
    '    got = ctypes.CDLL(None).syscall(438, fd, n, 0)\n    if got >= 0: os.write(got, b\'{"ok": true, "reason": ""}\')',
    "changes numbers": "import ctypes\nctypes.memmove(id(0) + 24, id(9) + 24, 4)",
    "changes types": "import ctypes\nd = ctypes.py_object.from_address(id(int.__dict__) + 16).value\n"
    "d['__eq__'] = lambda *a: True",
    "no limit on recursion": "sys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "a module that makes names": "def __getattr__(name): return lambda *a: True\ndef __dir__(): return ['abs']\n"
    "__all__ = ['abs']",
    "a dict that is not one": "class D(dict):\n    def items(self): return [('abs', lambda *a: 0)]\n"
    "sys.modules['program'] = D()\nd = D()",
    "collected late": "class G:\n    def __del__(self): print('gone')\n    __eq__ = lambda *a: True\n"
    "def f(x): return G()",
    "prints that it passed": "print('ok')\nprint('1 passed in 0.01s')",
}


@pytest.mark.parametrize("how", ATTACKS)
def test_no_attack_passes_any_kind_of_test(how):
    """Thirty-four kinds of test at once: each says by itself whether it passed."""
    found = run(PIPE + ATTACKS[how], all_tests())
    assert not passed(found) and found.ok is not True, (passed(found), found)


@pytest.mark.parametrize("kind", TESTS)
@pytest.mark.parametrize("how", ["__builtins__ as a dict", "names of builtins, all true"])
def test_no_kind_of_test_is_passed_alone(kind, how):
    """Alone, a test leaves more names open than among others."""
    test = f"{HEAD}\n{TESTS[kind]}" if "run_case" in TESTS[kind] else TESTS[kind]
    found = run(PIPE + ATTACKS[how], test)
    assert found.ok is not True, found


def test_there_are_enough_attacks():
    assert len(ATTACKS) >= 100 and len(TESTS) >= 30


# ---- tests that are only defined ---------------------------------------------------------------------------------------


ADD, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 0\n"
CALLED = {
    "pytest": "def test_add():\n    assert add(1, 2) == 3\n",
    "pytest, a class": "class TestAdd:\n    def test_add(self):\n        assert add(1, 2) == 3\n",
    "pytest, called": "def test_add():\n    assert add(1, 2) == 3\ntest_add()\n",
    "unittest": "import unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)\n",
    "unittest, main": "import unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)"
    "\n\nif __name__ == '__main__':\n    unittest.main()\n",
    "a main": "def main():\n    assert add(1, 2) == 3\n\nif __name__ == '__main__':\n    main()\n",
    "check": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
    "check, called": "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n",
}
OPEN = {
    "nothing": "# nothing here",
    "pass": "pass",
    "true": "assert True",
    "true of others": "assert sorted([2, 1]) == [1, 2]",
    "an import": "import math\nassert math.pi > 3",
    "a function that nobody calls": "def run_checks():\n    assert add(1, 2) == 3",
    "a function with arguments": "def test_add(a, b):\n    assert add(a, b) == 3",
    "a coroutine": "async def test_add():\n    assert add(1, 2) == 3",
    "a generator": "def test_add():\n    assert add(1, 2) == 3\n    yield",
    "a class that nobody uses": "class Checks:\n    def run(self):\n        assert add(1, 2) == 3",
    "a case without a test": "import unittest\nclass T(unittest.TestCase):\n    def check(self):\n        assert add(1, 2) == 3",
    "a case that is skipped": "import unittest\n@unittest.skip('later')\nclass T(unittest.TestCase):\n    def test(self):\n"
    "        self.assertEqual(add(1, 2), 3)",
    "a branch that is not taken": "if False:\n    assert add(1, 2) == 3",
    "an exit before": "import sys\nsys.exit(0)\nassert add(1, 2) == 3",
    "no Python": "add(1, 2) should be 3",
    "what the sandbox lacks": "import no_such_package\nassert add(1, 2) == 3",
}


@pytest.mark.parametrize("how", CALLED)
def test_what_tests_define_is_called(how):
    assert run(ADD, CALLED[how]).ok is True, run(ADD, CALLED[how])
    assert run(WRONG, CALLED[how]).ok is False


@pytest.mark.parametrize("how", OPEN)
def test_what_asks_nothing_is_no_pass_and_no_failure(how):
    for program in (ADD, WRONG):
        found = run(program, OPEN[how])
        assert found.ok is None and found.reason, found


def test_which_function_is_checked():
    test = "def check(candidate):\n    assert candidate(1, 2) == 3"
    two = f"def helper(a):\n    return a\n{ADD}"
    assert run(two, test).ok is None and "which function" in run(two, test).reason
    assert run(two, test, entry_point="add").ok is True
    assert run(two, test, entry_point="helper").ok is False
    assert run(ADD, test, entry_point="sub").ok is False


# ---- programs as models write them -------------------------------------------------------------------------------------


DATACLASS = "from dataclasses import dataclass\n\n@dataclass\nclass P:\n    x: int\n\ndef f():\n    return P(3)\n"
ERROR = "class Odd(ValueError):\n    pass\n\ndef f(x):\n    raise Odd(f'no {x}')\n"
OBJECTS = {
    "a dataclass": (DATACLASS, "assert f().x == 3"),
    "a dataclass, later": (f"from __future__ import annotations\n{DATACLASS}", "assert f().x == 3"),
    "annotations": ("def g(x: int): ...\ndef f(): return g.__annotations__['x'] is int", "assert f()"),
    "a pickle": ("import pickle\nclass A: pass\ndef f(): return isinstance(pickle.loads(pickle.dumps(A())), A)", "assert f()"),
    "a named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
                      "assert f() == (1, 2) and f().y == 2"),
    "an error of its own": (ERROR, "try:\n    f(1)\nexcept Odd as error:\n    assert str(error) == 'no 1'\nelse:\n    assert 0"),
    "an error by its base": (ERROR, "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert 0"),
    "a fraction": ("from fractions import Fraction\ndef f(): return Fraction(1, 2)", "assert f() == 0.5"),
    "a decimal": ("from decimal import Decimal\ndef f(x): return x + Decimal('0.1')",
                  "from decimal import Decimal\nassert f(Decimal('0.2')) == Decimal('0.3')"),
    "a date": ("import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
               "import datetime\nassert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)"),
    "a deque and a range": ("from collections import deque\ndef f(n): return deque(range(n)), range(n)",
                            "from collections import deque\nassert f(2) == (deque([0, 1]), range(2))"),
    "a type": ("def f(x): return type(x)", "assert f(3) is int and f('') == str"),
    "a generator": ("def f():\n    yield 1\n    yield 2", "assert list(f()) == [1, 2]\nit = f()\nassert next(it) == 1"),
    "a class": ("class S:\n    def __init__(self): self.d = {}\n    def __getitem__(self, k): return self.d[k]\n    def "
                "__setitem__(self, k, v): self.d[k] = v\n    def __contains__(self, k): return k in self.d\n    def "
                "__len__(self): return len(self.d)\ndef make(): return S()",
                "s = S()\ns['a'] = 1\nassert 'a' in s and s['a'] == 1 and len(s) == 1 and isinstance(make(), S)"),
    "a great number": ("def f(): return 7 ** 9999", "assert f() == 7 ** 9999"),
    "a module that the tests use as well": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(4), 2)"),
    "a counter that the tests use as well": ("from collections import Counter\ndef f(x): return Counter(x)",
                                             "assert f('aab') == Counter('aba')"),
    "a name of Python's": ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
    "a name of the library's": ("def gcd(a, b): return b", "assert gcd(10, 15) == 15"),
    "one function, called by another name": ("def f(x): return x", "candidate = f\nassert candidate(1) == 1"),
}  # fmt: skip
DOUBTS = {
    "two objects": (DATACLASS, "assert f() == P(3)", "compares two objects"),
    "its own equality": ("class N:\n    def __eq__(self, o): return True\ndef f(): return N()", "assert f() == 3", "__eq__"),
    "its own arithmetic": ("class N:\n    def __sub__(self, o): return 0\ndef f(): return N()", "assert abs(f() - 3) < 1",
                           "computes with"),
    "a function that tests give": ("def f(g): return g(1)", "assert f(lambda x: x) == 1", "not plain data"),
    "an alias of a module": ("import math as m\ndef f(x): return x", "assert m.isclose(f(4), 4)", "do not import"),
    "a helper of the library's name": ("def isclose(a, b): return True\ndef f(x): return 0", "assert isclose(f(4), 4)",
                                       "without importing"),
    "what it prints": ("def f(): print('a')", "import io, contextlib\nout = io.StringIO()\nwith "
                       "contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'a\\n'", "does not reach"),
}  # fmt: skip


@pytest.mark.parametrize("what", OBJECTS)
def test_right_programs_pass(what):
    found = run(*OBJECTS[what])
    assert found.ok is True, found


@pytest.mark.parametrize("what", DOUBTS)
def test_what_cannot_be_told_is_unknown(what):
    program, test, why = DOUBTS[what]
    found = run(program, test)
    assert found.ok is None and why in found.reason, found


def test_the_tests_are_nowhere_in_the_programs_memory_nor_in_what_it_is_asked():
    program = "def f(*a): return [a]\ndef g(*a): return a"
    assert run(program, "assert f(1) == [(1,)]", "assert g() == ()").ok


# ---- against plain Python ----------------------------------------------------------------------------------------------


REFERENCES = {
    "def close_elements(numbers, threshold):\n    for i, a in enumerate(numbers):\n        for j, b in enumerate(numbers):\n"
    "            if i != j and abs(a - b) < threshold:\n                return True\n    return False": "def check(candidate):\n"
    "    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True\n    assert candidate([1.0, 2.0, 3.9], 0.05) == False\n"
    "    assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) == True\ncheck(close_elements)",
    "def parts(text):\n    found, depth, now = [], 0, []\n    for c in text:\n        if c == '(':\n            depth += 1\n"
    "            now.append(c)\n        elif c == ')':\n            depth -= 1\n            now.append(c)\n            if depth == 0:\n"
    "                found.append(''.join(now))\n                now = []\n    return found": "def check(candidate):\n    assert "
    "candidate('(()()) ((())) ()') == ['(()())', '((()))', '()']\n    assert candidate('') == []\ncheck(parts)",
    "import math\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\ndef find_zero(xs):\n    a, b = "
    "-1.0, 1.0\n    while poly(xs, a) * poly(xs, b) > 0:\n        a *= 2\n        b *= 2\n    while b - a > 1e-10:\n        "
    "m = (a + b) / 2\n        if poly(xs, m) * poly(xs, a) > 0:\n            a = m\n        else:\n            b = m\n    return a":
    "def check(candidate):\n    for xs in ([1, 2], [-6, 11, -6, 1]):\n        assert math.fabs(poly(xs, candidate(xs))) < 1e-4\n"
    "check(find_zero)",
    "def triples(xs, total):\n    found = set()\n    for i in range(len(xs)):\n        for j in range(i + 1, len(xs)):\n            "
    "for k in range(j + 1, len(xs)):\n                if xs[i] + xs[j] + xs[k] == total:\n                    "
    "found.add((xs[i], xs[j], xs[k]))\n    return found": "assert triples([1, 2, 3, 4], 6) == {(1, 2, 3)}\n"
    "assert set(triples([1, 2, 3, 4, 5], 9)) == set([(1, 3, 5), (2, 3, 4)])",
    "def volume(l, b, h):\n    return (l * b * h) / 2": "assert abs(volume(10, 8, 6) - 240) < 1e-9\nassert volume(3, 2, 2) == 6",
    "class Stack:\n    def __init__(self):\n        self.items = []\n    def push(self, x):\n        self.items.append(x)\n    def "
    "pop(self):\n        return self.items.pop() if self.items else None": "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2\n"
    "assert s.pop() == 1\nassert s.pop() is None",
}  # fmt: skip


def mutants(program: str) -> list[str]:
    """The program with one operator, constant or comparison changed at a time."""
    swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.Lt: ast.GtE, ast.Gt: ast.LtE,
             ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or}  # fmt: skip
    found = []
    for at in range(len(list(ast.walk(ast.parse(program))))):
        tree = ast.parse(program)
        node = list(ast.walk(tree))[at]
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in swaps:
            node.op = swaps[type(node.op)]()
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
            node.ops[0] = swaps[type(node.ops[0])]()
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            node.value = not node.value if type(node.value) is bool else node.value + 1
        elif isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Constant(None)
        else:
            continue
        found.append(ast.unparse(tree))
    return found


def plain_python(program: str, test: str) -> bool:
    """In a process of its own: a mutant may never end."""
    import subprocess
    import sys

    try:
        return not subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"{program}\n{test}"], capture_output=True, timeout=3
        ).returncode
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("program", REFERENCES)
def test_mutants_fail_exactly_where_plain_python_fails(program):
    test, limits = REFERENCES[program], SandboxLimits(seconds=3.0)
    assert run(program, test).ok is True, run(program, test)
    for mutant in mutants(program):
        assert run_tests(mutant, [test], limits).ok is plain_python(mutant, test), mutant
