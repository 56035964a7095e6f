"""A Modelfile, so that `ollama create NAME -f Modelfile` makes a model of an exported file.

Ollama has templates of another language than transformers. A chat template that frames each turn the same way whatever
stands around it is taken apart into those frames, which are put together again in Ollama's language; whether they make
the same text is checked on several conversations. A template that does more is left to Ollama's own reading of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError, TeacherError
from limbeck.text.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")
MARKS = {"system": "Be brief.", "user": "How many?", "assistant": "Seven."}


@dataclass(frozen=True)
class Frames:
    """What stands before and behind a turn of each role, what asks for a reply, and the system message that is there
    when none is given ("" for none)."""

    before: dict[str, str]
    behind: dict[str, str]
    ask: str
    system: str = ""

    def render(self, turns: Sequence[Mapping[str, str]]) -> str:
        if self.system and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system}, *turns]
        framed = (self.before[turn["role"]] + turn["content"] + self.behind[turn["role"]] for turn in turns)
        return "".join(framed) + self.ask


def modelfile(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[str],
    *,
    bos: str = "",
    settings: Mapping[str, float],
    licence: str | None = None,
) -> str:
    """The text of a Modelfile for the file `source`. `ends` are the tokens that end a reply, `bos` what llama.cpp
    itself puts in front of a text, `settings` parameters by Ollama's names."""
    lines = [f"FROM {source}"]
    frames = find_frames(tokenizer, bos)
    if frames is not None:
        lines.append(f"TEMPLATE {_quoted(_go_template(frames))}")
        lines += [f"SYSTEM {_quoted(frames.system)}"] if frames.system else []
    elif tokenizer.chat_template:
        lines.append("# The chat template in the model's file does more than frame turns: Ollama reads it as it can.")
    lines += [f"PARAMETER stop {_quoted(end)}" for end in ends]
    lines += [f"PARAMETER {name} {value:g}" for name, value in settings.items()]
    lines += [f"LICENSE {_quoted(licence)}"] if licence else []
    return "\n".join(lines) + "\n"


def find_frames(tokenizer: PreTrainedTokenizerBase, bos: str = "") -> Frames | None:
    """The frames of a chat template, without the `bos` that is put in front of the text anyway; None without a
    template, or where frames do not say all that it does."""
    for roles in (ROLES, ROLES[1:]):  # some templates refuse a system message
        talks = [("user",), ("user", "assistant", "user"), (*roles, "user")]
        talks += [("system", "user")] if "system" in roles else []
        try:
            rendered = {talk: _render(tokenizer, bos, *talk) for talk in talks}
        except (DataError, TeacherError):  # no template, or one that refuses such a conversation
            continue
        fitting = (frames for frames in _guesses(roles, rendered) if _holds(frames, rendered))
        if frames := next(fitting, None):
            return frames
    return None


def _guesses(roles: Sequence[str], rendered: Mapping[tuple[str, ...], str]) -> Iterator[Frames]:
    """Frames read off one conversation of all roles. What stands behind a turn is some beginning of what all turns have
    in common there; what follows it belongs to the next one."""
    talk = (*roles, "user")
    whole, places, at = rendered[talk], [], 0
    for role in talk:
        start = whole.find(MARKS[role], at)
        if start < 0:
            return
        at = start + len(MARKS[role])
        places.append((start, at))
    starts, ends = [start for start, _ in places], [end for _, end in places]
    gaps = [whole[a:b] for a, b in zip(ends, [*starts[1:], len(whole)], strict=True)]
    common = _common(*gaps)
    for size in range(len(common), -1, -1):
        fronts = [whole[: starts[0]], *(gap[size:] for gap in gaps)]  # the last of them asks for a reply
        before = dict(zip(talk, fronts, strict=False))
        frames = Frames(before, dict.fromkeys(roles, common[:size]), fronts[-1])
        yield frames if "system" not in roles else _with_default(frames, rendered[("user",)])


def _with_default(frames: Frames, plain: str) -> Frames:
    """Frames with the system message that a conversation without one, rendered as `plain`, shows."""
    default = plain.removesuffix(frames.render(_turns("user")))
    start, end = frames.before["system"], frames.behind["system"]
    framed = default.startswith(start) and default.endswith(end) and len(default) > len(start) + len(end)
    return replace(frames, system=default[len(start) : len(default) - len(end)]) if framed else frames


def _holds(frames: Frames, rendered: Mapping[tuple[str, ...], str]) -> bool:
    """Whether frames make the template's text of conversations of one and more turns, and can be written down."""
    return '"""' not in frames.system and all(frames.render(_turns(*talk)) == text for talk, text in rendered.items())


def _turns(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": MARKS[role]} for role in roles]


def _render(tokenizer: PreTrainedTokenizerBase, bos: str, *roles: str) -> str:
    text = ChatTemplate(tokenizer).render(_turns(*roles), "a conversation", reply=True)
    return text.removeprefix(bos)


def _common(*texts: str) -> str:
    shortest = min(texts, key=len)
    size = next((i for i in range(len(shortest)) if any(text[i] != shortest[i] for text in texts)), len(shortest))
    return shortest[:size]


def _go_template(frames: Frames) -> str:
    """Go's text/template over Ollama's `.Messages`."""
    cases = []
    for number, role in enumerate(frames.before):
        start, end = _literal(frames.before[role]), _literal(frames.behind[role])
        cases.append(f'{{{{- {"else " if number else ""}if eq .Role "{role}" }}}}{start}{{{{ .Content }}}}{end}')
    return "{{- range .Messages }}" + "".join(cases) + "{{- end }}{{- end }}" + _literal(frames.ask)


def _literal(text: str) -> str:
    """Text that the template shows as it is, whatever stands around it: the spaces that `{{-` eats are kept."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""  # a JSON string is one of Go's


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
