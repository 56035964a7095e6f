"""The page at `/`, and what it shows: three files without a build, and the experts as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

if TYPE_CHECKING:
    from limbeck.experts import Expert
    from limbeck.serve.app import ServerState

HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: its own script and style, requests to this server, and nothing else."""


class Score(BaseModel):
    """A mean over `n` held-out rows, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    n: int | None


class ShownExpert(BaseModel):
    name: str
    version: str
    domain: str
    description: str
    languages: list[str]
    examples: list[str]
    counter_examples: list[str]
    format: str
    quant: str
    parameters: int
    bytes: int
    memory_bytes: int
    tokens_per_second: float
    machine: str
    teacher: str
    licence: str | None
    chat: bool
    open: bool
    backend: bool
    scores: dict[str, dict[str, Score]]


class ShownUpstream(BaseModel):
    model: str
    input_price: float | None
    output_price: float | None


class Damaged(BaseModel):
    name: str
    reason: str


class Experts(BaseModel):
    """What the page shows. `auto`: a router is fitted."""

    experts: list[ShownExpert]
    damaged: list[Damaged]
    auto: bool
    upstream: ShownUpstream | None


def add(app: FastAPI) -> None:
    """The page's files, read once."""
    for path, (name, kind) in FILES.items():
        _add_file(app, path, (HERE / name).read_bytes(), kind)


def _add_file(app: FastAPI, path: str, text: bytes, kind: str) -> None:
    headers = {"content-security-policy": POLICY, "x-frame-options": "DENY", "cache-control": "no-cache"}

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(text, media_type=kind, headers=headers)


def created_at(expert: Expert) -> int:
    """Seconds since 1970; 0 where the card does not say."""
    try:
        found = datetime.fromisoformat(expert.card.created)
    except ValueError:
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def experts(house: ServerState) -> dict[str, Any]:
    upstream = house.routes.upstream
    prices = upstream.prices if upstream else None
    return {
        "experts": [_shown(house, expert) for _, expert in sorted(house.catalogue.newest.items())],
        "damaged": [{"name": name, "reason": reason} for name, reason in sorted(house.catalogue.damaged.items())],
        "auto": house.routes.router is not None,
        "upstream": upstream
        and {
            "model": upstream.name,
            "input_price": prices.input if prices else None,
            "output_price": prices.output if prices else None,
        },
    }


def _shown(house: ServerState, expert: Expert) -> dict[str, Any]:
    card, scope = expert.card, expert.card.scope
    place = house.pool.places.get(f"{expert.name}@{expert.version}")
    names = ("format", "quant", "parameters", "bytes", "memory_bytes")
    names += ("tokens_per_second", "machine", "teacher", "licence")
    return {
        "name": expert.name,
        "version": expert.version,
        "domain": scope.domain,
        "description": scope.description,
        "languages": list(scope.languages),
        "examples": list(scope.examples[:3]),
        "counter_examples": list(scope.counter_examples[:3]),
        **{name: getattr(card, name) for name in names},
        "chat": scope.chat,
        "open": place is not None and place.opened is not None,
        "backend": expert.name in house.routes.backends,
        "scores": {
            who: {
                metric: {key: score.get(key) for key in ("value", "low", "high", "n")} for metric, score in row.items()
            }
            for who, row in card.scores.items()
        },
    }
