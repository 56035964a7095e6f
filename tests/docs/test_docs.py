"""The documentation is true: its Python runs, its recipes load, its commands and links exist, its tree is the tree.

Python blocks of one page run in order, in one namespace, in a folder that holds `teacher/` (a tiny model) and
`notes.jsonl` (a little text), and every YAML block of the page that begins with `# NAME.yaml`, under that name.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from limbeck.cli import app
from limbeck.config.schema import paths_of
from limbeck.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KEYS = frozenset(paths_of(Recipe))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
PLACEHOLDERS = re.compile(r"TODO|FIXME|TBD|XXX|lorem", re.IGNORECASE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def recipes(page: Path) -> dict[str, str]:
    named = {}
    for text in blocks(page, "yaml"):
        head = re.match(r"# (\S+\.yaml)\b", text)
        if head:
            named[head[1]] = text
    return named


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def executed() -> list[object]:
    """Pages with Python; those that make a whole run, or another process, belong to the second tier."""
    heavy = re.compile(r"limbeck\.run_recipe\(|subprocess")
    slow = {page: any(heavy.search(block) for block in blocks(page, "python")) for page in with_blocks("python")}
    return [pytest.param(page, id=name(page), marks=[pytest.mark.slow] * slow[page]) for page in slow]


@pytest.mark.parametrize("page", executed())
def test_python_runs(page: Path, tmp_path: Path, monkeypatch, tiny_llama, text_jsonl):
    shutil.copytree(tiny_llama, tmp_path / "teacher")
    shutil.copy(text_jsonl, tmp_path / "notes.jsonl")
    for file, text in recipes(page).items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{name(page)}, python block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if recipes(page)], ids=name)
def test_recipes_load(page: Path, tmp_path: Path):
    for file, text in recipes(page).items():
        (tmp_path / file).write_text(text)
        Recipe.load(tmp_path / file)


def keys_of(section: object, path: str = "") -> list[str]:
    """Dotted keys of nested maps; maps inside lists are left to the recipes that load."""
    if not isinstance(section, dict):
        return [path]
    return [key for name, inner in section.items() for key in keys_of(inner, f"{path}.{name}" if path else name)]


def fragments(page: Path) -> list[dict[str, object]]:
    """YAML blocks that show a part of a recipe."""
    parts = [yaml.safe_load(text) for text in blocks(page, "yaml") if not re.match(r"# (\S+\.yaml)\b", text)]
    return [part for part in parts if set(part) & set(Recipe.model_fields)]


@pytest.mark.parametrize("page", [page for page in PAGES if fragments(page)], ids=name)
def test_keys_of_fragments_exist(page: Path):
    assert [key for part in fragments(page) for key in keys_of(part) if key not in KEYS] == []


def commands(page: Path) -> list[list[str]]:
    """Every `limbeck ...` line of the page's shell blocks, as words; comments and continuation lines are honoured."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("limbeck") + 1 :] for line in words if "limbeck" in line]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_exist(page: Path):
    """Verbs, options and keys: each line is parsed as the command line would, but not run."""
    for words in commands(page):
        command: Any = typer.main.get_command(app.app)
        context = typer.Context(command, info_name="limbeck")
        while hasattr(command, "commands"):  # typer brings its own click, whose Group is not click's
            assert words and words[0] in command.commands, f"{name(page)}: limbeck has no command {words[:1]}"
            command, words = command.commands[words[0]], words[1:]
            context = typer.Context(command, info_name=command.name, parent=context)
        parameters, _, _ = command.make_parser(context).parse_args(list(words))
        overrides = parameters.get("overrides") or []
        for override in [overrides] if isinstance(overrides, str) else overrides:
            assert override.partition("=")[0] in KEYS, f"{name(page)}: a recipe has no key {override}"


@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_scripts_and_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "make":
            assert words[1] in targets
        assert all((ROOT / word).exists() for word in words if word.endswith(".py"))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")], ids=name)
def test_tests_that_a_page_names_are_there(page: Path):
    for path, function in re.findall(r"`(tests/[^`*\s]+?)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), function


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{name(page)}: nothing at {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_write(page: Path):
    assert not PLACEHOLDERS.search(page.read_text(encoding="utf-8"))


HISTORY = ("CHANGELOG.md", "log.md")
"""Pages that speak of names as they were."""
SOURCES = frozenset(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py") if "/." not in str(path))
NAME = re.compile(r"\blimbeck(?:\.[A-Za-z_]\w*)+")
SOURCE = re.compile(r"(?<![\w./*-])[\w/]+\.py\b")


def missing_names(text: str) -> list[str]:
    """Dotted names of the package that do not exist, and Python files that no folder of the repository ends in."""
    names = {name for name in NAME.findall(text) if name.rpartition(".")[2] not in ("json", "yaml", "egg")}
    files = {path for path in SOURCE.findall(text) if not any(f"/{one}".endswith(f"/{path}") for one in SOURCES)}
    return sorted({name for name in names if not exists(name)} | files)


def exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name)
def test_names_and_files_exist(page: Path):
    assert missing_names(page.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_found():
    text = "`limbeck.jobs.run`, `limbeck.open_lm`, limbeck.Recipe.nothing, `train/loop.py`, `jobs/run.py`, limbeck.json"
    assert missing_names(text) == ["jobs/run.py", "limbeck.Recipe.nothing", "limbeck.jobs.run"]


def test_the_index_has_every_page():
    listed = {(ROOT / "docs" / target).resolve() for target in LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert listed == {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "index.md"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def tree_of(text: str) -> set[str]:
    """Paths of an indented tree: `name/  what` opens a folder, deeper lines are inside it, names are set off by two
    spaces from what they are."""
    paths, folders = set(), []
    for line in text.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        entry = line.strip().split("  ")[0]
        folders = folders[:depth]
        if entry.endswith("/"):
            folders.append(entry)
        paths.add("".join(folders) if entry.endswith("/") else "".join(folders) + entry)
    return paths


def test_the_readmes_tree_is_the_tree():
    trees = [text for text in blocks(ROOT / "README.md", "text") if text.startswith("limbeck/")]
    assert len(trees) == 1, "README.md has one tree, a text block that begins with limbeck/"
    listed = tree_of(trees[0])
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"the tree lists what does not exist: {missing}"
    inside = [path for path in (ROOT / "limbeck").iterdir() if path.suffix in {"", ".py"} and path.name[0] != "_"]
    wanted = {f"limbeck/{path.name}/" if path.is_dir() else f"limbeck/{path.name}" for path in inside}
    assert not wanted - listed, f"the tree leaves out {sorted(wanted - listed)}"
