"""Keys and words that had another name once. A renamed key has its old name as `serialization_alias`; a renamed word
stands in `Was`.

Fingerprints and stores keep the old names (`Section.stored_form`), so what was made before stays current. A user's file
is refused with the new name; what Limbeck wrote into a run folder is read in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from limbeck.config.schema import items_of, new_keys, sections_of
from limbeck.config.yaml import Node

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo
    from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Was:
    """Stands in a field's annotation: its words that are called otherwise now, old and new."""

    words: tuple[tuple[str, str], ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        old = {new: old for old, new in self.words}

        def serialize(value: str, info: SerializationInfo) -> str:
            return old.get(value, value) if info.by_alias else value

        written = core_schema.plain_serializer_function_ser_schema(serialize, info_arg=True)
        return {**handler(source), "serialization": written}  # type: ignore[return-value]


def new_words(info: FieldInfo) -> dict[str, str]:
    """Words of a field that are called otherwise now, by their old name."""
    return dict(pair for item in info.metadata if isinstance(item, Was) for pair in item.words)


def translate(model: type[BaseModel], section: Node) -> Node:
    """A section that was written with old names, in those of today."""
    if not isinstance(section.value, dict):
        return section
    new, known = new_keys([model]), model.model_fields
    named = {new.get(key, key): child for key, child in section.value.items()}
    read = {key: _value(known[key], child) if key in known else child for key, child in named.items()}
    return Node(read, section.origin)


def _value(info: FieldInfo, node: Node) -> Node:
    if isinstance(node.value, list):
        return Node([_one_of(items_of(info), item) for item in node.value], node.origin)
    if isinstance(node.value, dict):
        return _one_of(sections_of(info), node)
    return Node(new_words(info).get(str(node.value), node.value), node.origin)


def _one_of(models: list[type[BaseModel]], node: Node) -> Node:
    kind = node.value["kind"].value if isinstance(node.value, dict) and "kind" in node.value else None
    fitting = [model for model in models if len(models) == 1 or model.model_fields["kind"].default == kind]
    return translate(fitting[0], node) if fitting else node
