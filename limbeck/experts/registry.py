"""The registry: a folder of experts that only grows. It can lie on a share or in git; there is no service.

REGISTRY/experts/NAME/VERSION/   written whole, never changed
   expert.json README.md         the card, for machines and for people
   model/                        the artifact, of any format
   prompts.jsonl                 what it was made for: prompts of its transfer set
   replay.jsonl heldout.jsonl    what `verify` repeats: greedy answers, scores of held-out rows
   MANIFEST.json                 size and SHA-256 of every file

Readers take no lock: a version is there whole, or not there. Writers hold REGISTRY/.lock for moments only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ExpertError
from limbeck.experts import integrity as sealed
from limbeck.experts.card import (
    NAME,
    VERSION,
    ExpertCard,
    PromptRow,
    card_json,
    check_name,
    check_version,
    precedence,
    read_card_json,
    read_lines,
    read_row,
    rows_jsonl,
)
from limbeck.experts.readme import render
from limbeck.system.atomic import fsync_dir, seal_dir
from limbeck.system.lock import is_held, locked, wait_lock
from limbeck.system.refusals import raise_if_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

logger = logging.getLogger(__name__)

CARD, PAGE, PROMPTS, MODEL = "expert.json", "README.md", "prompts.jsonl", "model"


@dataclass(frozen=True)
class Expert:
    """One version of an expert, as `Registry` found it intact. `path` is its folder."""

    name: str
    version: str
    path: Path
    card: ExpertCard

    @property
    def model_path(self) -> Path:
        """The artifact: what `limbeck.open_lm` opens."""
        return self.path / MODEL

    def prompts(self) -> Iterator[PromptRow]:
        """Prompts of the transfer set; none where they were not stored. Raises ExpertError for a damaged line."""
        if not (self.path / PROMPTS).exists():
            return
        for number, line in read_lines(self.path / PROMPTS):
            yield read_row(line, f"{self.name} {self.version}: {PROMPTS}, line {number}")


@dataclass(frozen=True)
class Registry:
    """The experts in a folder. Every file is hashed when it is first seen, and again when it has changed since."""

    path: Path
    _seen: sealed.SeenFiles = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    # ---- reading ----

    def experts(self, *, every: bool = False) -> list[Expert]:
        """The newest intact version of each expert, by name; with `every`, all intact versions.

        Raises ExpertError when there is no registry here."""
        return self._look(every)[0]

    def damaged(self) -> dict[str, str]:
        """What is not served: NAME/VERSION (or the name of what is no expert at all), and why."""
        return self._look(True)[1]

    def expert(self, name: str, version: str | None = None) -> Expert:
        """One expert; without `version` its newest intact one.

        Raises ExpertError when there is none of this name or version, or when it is damaged."""
        check_name(name)
        if version is not None:
            folder = self._folder(name, check_version(version))
            if not folder.is_dir():
                known = ", ".join(self.versions(name)) or "none"
                raise ExpertError(f"{self.path} has no expert {name} {version}; its versions there: {known}.")
            return self._read(name, version)
        broken = {}
        for newest in reversed(self.versions(name)):
            try:
                return self._read(name, newest)
            except ExpertError as error:
                logger.info("%s %s is skipped for the version before: %s", name, newest, error)
                broken[newest] = str(error)
        if broken:
            raise ExpertError("; ".join(broken.values()))
        known = ", ".join(self.names()) or "none yet"
        raise ExpertError(f"{self.path} has no expert {name!r}; there are: {known}.")

    def names(self) -> list[str]:
        """Names under which there is at least one version, damaged ones included."""
        return [name for name in self._listed() if NAME.fullmatch(name) and self.versions(name)]

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first, damaged ones included; [] when there are none."""
        home = self.path / "experts" / check_name(name)
        if not home.is_dir() or home.is_symlink():
            return []
        return sorted((entry for entry in os.listdir(home) if VERSION.fullmatch(entry)), key=precedence)

    def _look(self, every: bool) -> tuple[list[Expert], dict[str, str]]:
        found, damaged = [], {}
        for name in self._listed():
            if not NAME.fullmatch(name) or (self.path / "experts" / name).is_symlink():
                damaged[name] = f"experts/{name!r} is no folder of an expert: a link, or not a name. It is left alone."
                continue
            for version in reversed(self.versions(name)):
                try:
                    expert = self._read(name, version)
                except ExpertError as error:
                    logger.info("%s/%s is skipped: %s", name, version, error)
                    damaged[f"{name}/{version}"] = str(error)
                    continue
                if every or not found or found[-1].name != name:
                    found.append(expert)
        return found, damaged

    def _listed(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.path / "experts") if not name.startswith("."))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            raise ExpertError(
                f"{self.path} is no registry ({error.strerror}: experts). Give the folder that `limbeck experts add` "
                "wrote to, or add an expert to make one."
            ) from error

    def _folder(self, name: str, version: str) -> Path:
        return self.path / "experts" / name / version

    def _read(self, name: str, version: str) -> Expert:
        folder = self._folder(name, version)
        try:
            card = read_expert(folder, name, version, self._seen)
        except (ExpertError, OSError) as error:
            raise ExpertError(
                f"the expert {name} {version} is damaged: {error}. It is not used. Restore its folder from a copy, or "
                f"`limbeck experts remove {self.path} {name} --version {version}` and add it again."
            ) from error
        return Expert(name, version, folder, card)

    def check(self, expert: Expert) -> None:
        """Raises ExpertError where an expert's files are no longer those that were found. A file that did not change
        since is not hashed again."""
        try:
            card = read_expert(expert.path, expert.name, expert.version, self._seen)
        except OSError as error:
            raise ExpertError(f"its files cannot be read ({error.strerror})") from error
        if card != expert.card:
            raise ExpertError("its card was changed since the registry was read")

    # ---- writing ----

    def add(
        self,
        name: str,
        version: str,
        card: ExpertCard,
        model: Path,
        *,
        prompts: Iterable[PromptRow] = (),
        files: Mapping[str, str] | None = None,
    ) -> Expert:
        """Write a new version, whole or not at all. `model` is the artifact's folder, linked where it can be, else
        copied; `files` are further text files by name.

        Raises ExpertError when this version exists (another process may just have added it) or when `model` holds what
        an expert may not hold; BudgetError when the disk is full."""
        sealed.names_in(model)
        sealed.refuse_outside(model)
        with self._new(name, version) as tmp:
            shutil.copytree(model, tmp / MODEL, copy_function=_link)
            (tmp / CARD).write_text(card_json(name, version, card), encoding="utf-8")
            (tmp / PAGE).write_text(render(name, version, card), encoding="utf-8")
            text = rows_jsonl(prompts)
            for file, content in {**({PROMPTS: text} if text else {}), **(files or {})}.items():
                (tmp / sealed.safe_name(file)).write_text(content, encoding="utf-8")
            seal_dir(tmp)
        return self._read(name, version)

    def adopt(self, folder: Path) -> Expert:
        """Add an expert that was sealed elsewhere, byte for byte. Its name and version are those in its card.

        Raises ExpertError when anything about it is wrong, or when this version exists."""
        name, version, _ = read_card_json(sealed.read_text(folder / CARD))
        read_expert(folder, check_name(name), check_version(version), {})
        with self._new(name, version) as tmp:
            shutil.copytree(folder, tmp, copy_function=_link, dirs_exist_ok=True)
            sealed.check_sealed(tmp, {})
            sync_tree(tmp)
        return self._read(name, version)

    def remove(self, name: str, version: str) -> None:
        """Take one version away: at any moment it is there whole, or not there. Raises ExpertError when there is none.

        A damaged version can be removed as well."""
        folder = self._folder(check_name(name), check_version(version))
        with self._locked():
            if not folder.is_dir() or folder.is_symlink() or folder.parent.is_symlink():
                known = ", ".join(self.versions(name)) or "none"
                raise ExpertError(f"{self.path} has no expert {name} {version} to remove; its versions: {known}.")
            aside = Path(tempfile.mkdtemp(prefix=f".{version}.", suffix=".old", dir=folder.parent))
            os.rename(folder, aside / "removed")
            fsync_dir(folder.parent)
            _sweep(folder.parent)
            with contextlib.suppress(OSError):  # other versions, or a writer at work
                folder.parent.rmdir()

    @contextlib.contextmanager
    def _new(self, name: str, version: str) -> Iterator[Path]:
        """A temporary folder that becomes this version when the block ends well."""
        final = self._folder(check_name(name), check_version(version))
        try:
            with self._temporary(final.parent, version, lambda: self._refuse_existing(final)) as tmp:
                yield tmp
                tmp.chmod(0o755)
                with self._locked():
                    self._refuse_existing(final)
                    os.rename(tmp, final)
                    for folder in (final.parent, final.parent.parent, self.path):
                        fsync_dir(folder)
        except OSError as error:
            raise_if_full(error, final)
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise ExpertError(f"{self.path} cannot be written ({error.strerror}: {error.filename}).") from error
            raise

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder on the registry's disk. What killed processes left of theirs is swept away."""
        with self._temporary(self.path, "pull") as tmp:
            yield tmp

    @contextlib.contextmanager
    def _temporary(self, home: Path, prefix: str, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Its lock, held while this process lives, stands beside it. `check` runs under the registry's lock."""
        with self._locked():
            home.mkdir(parents=True, exist_ok=True)
            _sweep(home)
            check()
            tmp = Path(tempfile.mkdtemp(prefix=f".{prefix}.", suffix=".tmp", dir=home))
            owner = wait_lock(tmp.with_suffix(".lock"))
        try:
            yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.with_suffix(".lock").unlink(missing_ok=True)
            owner.release()

    def _refuse_existing(self, final: Path) -> None:
        if final.parent.is_symlink():
            raise ExpertError(f"{final.parent} is a link; a registry holds plain folders only. Remove the link.")
        if final.exists() or final.is_symlink():
            name, version = final.parent.name, final.name
            raise ExpertError(
                f"the expert {name} {version} is in {self.path} already, and a version is never changed. Add it under "
                f"another --version, or take this one away: limbeck experts remove {self.path} {name} --version "
                f"{version}"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, for as long as a rename takes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / ".lock"):
            yield


def read_expert(folder: Path, name: str, version: str, seen: sealed.SeenFiles) -> ExpertCard:
    """The card of a sealed folder after checking all of it. Raises ExpertError, OSError."""
    if folder.is_symlink() or not folder.is_dir():
        raise ExpertError(f"{folder} is not a plain folder")
    names = sealed.check_sealed(folder, seen)
    if CARD not in names or not any(file.startswith(f"{MODEL}/") for file in names):
        raise ExpertError(f"it lacks {CARD} or the folder {MODEL}")
    text = sealed.read_text(folder / CARD)
    own_name, own_version, card = read_card_json(text)
    if (own_name, own_version) != (name, version):
        raise ExpertError(f"its card is that of {own_name[:80]!r} {own_version[:80]!r}")
    sealed.refuse_outside(folder / MODEL)
    return card


def sync_tree(folder: Path) -> None:
    """Everything in a folder reaches the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_dir(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sweep(home: Path) -> None:
    """Remove what ended writers left of any version. Called under the registry's lock, under which alone temporary
    folders and their locks are made."""
    for lock in home.glob(".*.lock"):
        if is_held(lock):
            continue
        logger.info("%s was left by an ended writer; removed", lock.with_suffix(".tmp"))
        shutil.rmtree(lock.with_suffix(".tmp"), ignore_errors=True)
        lock.unlink(missing_ok=True)
    for path in [*home.glob(".*.tmp"), *home.glob(".*.old")]:
        if not path.with_suffix(".lock").exists():
            shutil.rmtree(path, ignore_errors=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, destination)


def list_experts(registry: Registry) -> dict[str, Any]:
    """Every intact version, newest first within a name, and what is damaged with its reason. Raises ExpertError."""
    experts, damaged = registry.experts(every=True), registry.damaged()
    return {"registry": str(registry.path), "experts": [_line(one) for one in experts], "damaged": damaged}


def _line(expert: Expert) -> dict[str, Any]:
    card = expert.card
    keys = ("format", "quant", "parameters", "bytes", "quality", "scores", "tokens_per_second")
    return {
        "name": expert.name,
        "version": expert.version,
        "domain": card.scope.domain,
        **{key: getattr(card, key) for key in keys},
    }


def show_expert(registry: Registry, name: str, version: str | None) -> dict[str, Any]:
    """All that is known of one. Raises ExpertError."""
    expert = registry.expert(name, version)
    splits = Counter(row.split for row in expert.prompts())
    return {"name": name, "version": expert.version, "path": str(expert.path), "prompts": dict(splits)} | asdict(
        expert.card
    )
