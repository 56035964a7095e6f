"""The schema of a typed tree (sections are pydantic models, choices are unions by `kind`), and the sentences that say
what it allows. Nothing here knows the recipe itself."""

from __future__ import annotations

import difflib
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic.fields import FieldInfo

Kinds = dict[str, type[BaseModel]]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
AboveZero = Annotated[float, Field(gt=0.0)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of every part of the tree: frozen; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    called: ClassVar[str] = "a recipe"  # as a whole, in error messages

    def stored_form(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """The values for fingerprints and stores, without the fields `exclude`, under the names that they first had."""
        return self.model_dump(mode="json", exclude=exclude, by_alias=True)


@dataclass(frozen=True)
class SectionPath:
    """One section of the tree: of type `model` at the path `keys`; `kind` of `kinds` where it is one of a union."""

    top: type[BaseModel]
    model: type[BaseModel]
    keys: tuple[str, ...] = ()
    kinds: Kinds = field(default_factory=dict)
    kind: str | None = None

    def into(self, key: str, kind: str | None = None) -> SectionPath:
        """The section that the field `key` holds; `kind` says which, where it is a union."""
        kinds = kinds_of(self.model.model_fields[key])
        model = kinds[str(kind)] if kinds else sections_of(self.model.model_fields[key])[0]
        return SectionPath(self.top, model, (*self.keys, key), kinds, kind)

    def into_item(self, key: str, index: int, kind: str | None = None) -> SectionPath:
        """One section of the list that the field `key` holds; `kind` says which, where they are of a union."""
        sections, kinds = items_of(self.model.model_fields[key]), item_kinds_of(self.model.model_fields[key])
        model = kinds[str(kind)] if kinds else sections[0]
        return SectionPath(self.top, model, (*self.keys, f"{key}[{index}]"), kinds, kind)

    @property
    def name(self) -> str:
        return ".".join(self.keys) or getattr(self.top, "called", "a recipe")


def parts_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without None and without constraints."""
    if get_origin(annotation) is Annotated:
        return parts_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in parts_of(member))
    return () if annotation is type(None) else (annotation,)


def sections_of(info: FieldInfo) -> list[type[BaseModel]]:
    """The models that a field may hold: none for a value, one for a section, several for a union by kind."""
    return [part for part in parts_of(info.annotation) if _is_section(part)]


def items_of(info: FieldInfo) -> list[type[BaseModel]]:
    """The models that a list's items may be: none where the field is no list of sections, several for a union by
    kind."""
    lists = [get_args(part)[0] for part in parts_of(info.annotation) if get_origin(part) is tuple]
    return [part for part in parts_of(lists[0]) if _is_section(part)] if lists else []


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def kinds_of(info: FieldInfo) -> Kinds:
    """The alternatives of a union by kind, by name; {} for every other field."""
    return _by_kind(sections_of(info))


def item_kinds_of(info: FieldInfo) -> Kinds:
    """The alternatives for each item of a list, by name; {} for every other field."""
    return _by_kind(items_of(info))


def _by_kind(sections: list[type[BaseModel]]) -> Kinds:
    return {part.model_fields["kind"].default: part for part in sections} if len(sections) > 1 else {}


def default_kind(info: FieldInfo) -> str | None:
    """The kind of a section that says none; None when it must be written, the section stays absent, or is a value. A
    section that must be there can still have a usual kind: `UsualKind`."""
    usual = next((item.kind for item in info.metadata if isinstance(item, UsualKind)), None)
    default = default_section(info)
    return usual if default is None else default.kind  # type: ignore[attr-defined]


@dataclass(frozen=True)
class UsualKind:
    """Stands in a field's annotation: the kind that a section has when it says none."""

    kind: str


def default_section(info: FieldInfo) -> BaseModel | None:
    """The section that stands when none is written; None when one must be written, or nothing or a value stands."""
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return default if isinstance(default, BaseModel) else None


def options_of(info: FieldInfo) -> list[str]:
    """The words that a field allows; [] when it is not a choice among words."""
    literals = [part for part in parts_of(info.annotation) if get_origin(part) is Literal]
    return [str(option) for part in literals for option in get_args(part)]


def paths_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every key of the tree, those of all kinds included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for section in items_of(info) or sections_of(info):
            yield from paths_of(section, f"{prefix}{name}.")


# ---- sentences -------------------------------------------------------------------------------------------------------

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}
_LIMITS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "pattern": "matching {}"}


def describe(info: FieldInfo) -> str:
    """What a field allows, in words: "one of auto, float32", "a whole number, above 0, or null"."""
    sections, kinds = sections_of(info), kinds_of(info)
    text = " or ".join(_describe_type(part) for part in parts_of(info.annotation) if part not in sections)
    limits = [text for item in [*info.metadata, *_inner_metadata(info.annotation)] for text in _limits(item)]
    text = f"{text}, {' and '.join(limits)}" if limits else text
    if sections:
        map_text = f"a map whose kind is one of {', '.join(kinds)}" if kinds else _describe_type(sections[0])
        text = f"{text}, or {map_text}" if text else map_text
    return f"{text}, or null" if type(None) in get_args(info.annotation) else text


def _describe_type(part: Any) -> str:
    if get_origin(part) is Literal:
        options = get_args(part)
        return str(options[0]) if len(options) == 1 else f"one of {', '.join(map(str, options))}"
    if get_origin(part) is tuple:
        inner = get_args(part)
        items = [item for item in parts_of(inner[0]) if _is_section(item)]
        if items:
            kinds = _by_kind(items)
            what = f"whose kind is one of {', '.join(kinds)}" if kinds else f"with {', '.join(items[0].model_fields)}"
            return f"a list of maps {what}"
        if get_origin(inner[0]) is Literal:
            return f"a list of {' and '.join(map(str, get_args(inner[0])))}"
        limits = [text for item in _inner_metadata(inner[0]) for text in _limits(item)]
        name = " ".join([_PLURALS[parts_of(inner[0])[0]], " and ".join(limits)]).strip()
        return f"a list of {name}" if inner[-1] is Ellipsis else f"a list of {len(inner)} {name}"
    if get_origin(part) is dict:
        return "a map of any keys"
    if issubclass(part, BaseModel):
        return f"a map with {', '.join(part.model_fields)}"
    return _NAMES[part]


def _inner_metadata(annotation: Any) -> list[Any]:
    """Constraints inside `Annotated[...] | None`."""
    if get_origin(annotation) is Annotated:
        return [inner for item in get_args(annotation)[1:] for inner in getattr(item, "metadata", [item])]
    if get_origin(annotation) in (Union, types.UnionType):
        return [item for member in get_args(annotation) for item in _inner_metadata(member)]
    return []


def _limits(constraint: Any) -> list[str]:
    bounds = {name: getattr(constraint, name, None) for name in _LIMITS}
    return [
        _LIMITS[name].format(f"{bound:g}" if isinstance(bound, float) else bound)
        for name, bound in bounds.items()
        if bound is not None
    ]


def closest(word: object, options: Iterable[str]) -> str | None:
    """The option that `word` misspells; None when there is none, or it is spelt right."""
    found = difflib.get_close_matches(str(word), list(options), n=1, cutoff=0.6)
    return found[0] if found and found[0] != word else None


def did_you_mean(word: object, options: Iterable[str]) -> str:
    """ " Did you mean X?", or nothing."""
    close = closest(word, options)
    return f" Did you mean {close}?" if close else ""


def new_keys(models: Iterable[type[BaseModel]]) -> dict[str, str]:
    """Keys of sections that are called otherwise now, by their old name."""
    fields = [pair for model in models for pair in model.model_fields.items()]
    return {info.serialization_alias: name for name, info in fields if info.serialization_alias}


def called_now(old: object, new: dict[str, str]) -> str:
    """ " `also` is called `extra_terms` now.", or nothing."""
    return f" `{old}` is called `{new[old]}` now." if isinstance(old, str) and old in new else ""


def unknown_key(site: SectionPath, key: str) -> str:
    """`key` is not a key of the section: to which kind or section it belongs, what was meant, what is allowed."""
    text = f"{key!r} is not a key of {site.name}" + (f" of kind {site.kind}." if site.kind else ".")
    renamed = new_keys([site.model, *site.kinds.values()])
    if key in renamed:
        return text + called_now(key, renamed)
    owners = [name for name, other in site.kinds.items() if key in other.model_fields]
    if owners:
        return f"{text} It belongs to kind {' or '.join(owners)}: set {site.name}.kind={owners[0]} too, or remove it."
    close = did_you_mean(key, site.model.model_fields)
    homes = [path for path in paths_of(site.top) if path.rpartition(".")[2] == key]
    if not close and homes:
        close = f" Did you mean {' or '.join(dict.fromkeys(homes))}?"
    allowed = [name for name in site.model.model_fields if name != "kind"]
    return f"{text}{close} Allowed: {', '.join(allowed) or 'nothing but kind'}."


def wrong_kind(name: str, kinds: Kinds, kind: object, keys: Sequence[str]) -> str:
    """The section `name` has no kind, or none that exists. `keys` are what else was written in it."""
    if kind is not None:
        return f"{name}.kind is {brief(kind)}; it must be one of {', '.join(kinds)}.{did_you_mean(kind, kinds)}"
    fitting = [option for option, section in kinds.items() if keys and all(key in section.model_fields for key in keys)]
    hint = f" With {keys[0]!r} it is {fitting[0]}." if len(fitting) == 1 else ""
    return f"{name} has no kind; {name}.kind must be one of {', '.join(kinds)}.{hint}"


def brief(value: object) -> str:
    """A found value in an error message, short."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return f"a map with {', '.join(map(str, value))}" if value else "an empty map"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
