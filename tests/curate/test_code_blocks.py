"""Which part of a reply is its program: as documented, or none."""

import pytest

from limbeck.curate.code_blocks import choose_program, code_blocks, defined_in, json_texts, used_by

CODE = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3"]
BLOCK = f"```python\n{CODE}```"
ONE = {
    "alone": BLOCK,
    "a usage example behind it": f"{BLOCK}\n\nUsage:\n\n```python\nprint(add(1, 2))\n```",
    "a usage example before it": f"```python\nprint(add(1, 2))\n```\n{BLOCK}",
    "its output": f"{BLOCK}\n\n```\n3\n```",
    "a shell": f"```bash\npip install add\n```\n{BLOCK}",
    "other ends of lines": BLOCK.replace("\n", "\r\n"),
    "attributes": BLOCK.replace("python", 'python title="add.py"'),
    "braces": BLOCK.replace("python", "{.python}"),
    "another spelling": BLOCK.replace("python", "Py"),
    "no language": BLOCK.replace("python", ""),
    "tildes": BLOCK.replace("```", "~~~"),
    "four ticks": BLOCK.replace("```", "````"),
    "in a list": "1. Write it:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "on a list's own line": "- ```python\n  def add(a, b):\n      return a + b\n  ```\n",
    "never closed": BLOCK.removesuffix("```"),
    "twice the same": f"{BLOCK}\nAgain:\n{BLOCK}",
    "without a fence": CODE,
    "prose before it, without a fence": f"Here it is:\n\n{CODE}",
    "behind its reasoning": f"<think>```python\ndef add(a, b): return 0\n```</think>{BLOCK}",
}


@pytest.mark.parametrize("how", ONE)
def test_the_block_that_defines_what_tests_call(how):
    chosen = choose_program(ONE[how], TESTS).text
    assert chosen is not None and chosen.strip() == CODE.strip(), chosen


def test_a_fence_in_a_docstring_closes_nothing():
    text = '```python\ndef add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n```'
    assert [block.text.count("```") for block in code_blocks(text)] == [2]


def test_what_a_block_needs_comes_along():
    helper, other = "```python\nimport math\ndef twice(x): return 2 * x\n```", "```python\ndef unused(): pass\n```"
    main = "```python\ndef add(a, b): return math.floor(twice(a)) + b\n```"
    chosen = choose_program(f"{helper}\n{other}\n{main}", TESTS).text
    assert chosen is not None and "twice" in chosen and "unused" not in chosen
    two = "```python\nclass Stack: pass\n```\n```python\ndef make(): return 5\n```"
    assert defined_in(choose_program(two, ["assert make() and Stack()"]).text or "") == {"Stack", "make"}


@pytest.mark.parametrize(
    ("reply", "tests"),
    [
        (f"{BLOCK}\nor\n{BLOCK.replace('+', '-')}", TESTS),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", TESTS),
        (f"{BLOCK}\n{BLOCK.replace('add', 'sub')}", ["def check(candidate):\n    assert candidate(1, 2) == 3"]),
    ],
)
def test_none_is_chosen_where_several_could_be_meant(reply, tests):
    chosen = choose_program(reply, tests)
    assert chosen.text is None and "code blocks" in chosen.why


def test_the_function_that_the_data_names():
    both = f"{BLOCK}\n{BLOCK.replace('add', 'sub')}"
    assert defined_in(choose_program(both, ["def check(candidate): pass"], "sub").text or "") == {"sub"}


def test_names_of_sources():
    assert used_by(["from a import b\nassert b(c) == len(d.e)", "def f(x): return x + g"]) == {"c", "d", "g"}
    assert used_by(["assert sum(1, 2) == 3"]) == {"sum"}
    assert defined_in("import a.b as c\nd: int = 1\ndef e(): f = 1\nclass G: pass\nh = i = 2") == {
        "c",
        "d",
        "e",
        "G",
        "h",
    } | {"i"}
    assert defined_in("def broken(:\n") == {"broken"}


def test_json_in_a_reply():
    assert json_texts("{}") == ["{}"]
    assert json_texts("```json\n1\n```\n```\n2\n```") == ["1\n"]
    assert json_texts("a ```\n```\n2\n```") == ["2\n"]
