"""The application: what is asked for by which path, and who does it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from limbeck.serve import completions as writing
from limbeck.serve import page, schemas
from limbeck.serve.completions import turns_of
from limbeck.serve.errors import ApiError, bad, no_model
from limbeck.serve.middleware import call_of
from limbeck.serve.responses import Envelope, EventStream, timed_out
from limbeck.serve.schemas import ChatRequest, CompletionRequest, explain
from limbeck.serve.settings import AUTO
from limbeck.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from limbeck.serve.dispatch import Catalogue, Chosen, Routes
    from limbeck.serve.middleware import RequestContext
    from limbeck.serve.pool import ExpertPool
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Serving
    from limbeck.serve.upstream import UpstreamModels

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure} for status in (400, 401, 404, 405, 408, 413, 429, 500, 503)
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@dataclass
class ServerState:
    """What all requests share."""

    settings: Serving
    catalogue: Catalogue
    pool: ExpertPool
    routes: Routes
    remotes: UpstreamModels
    metrics: Metrics


def make_app(house: ServerState) -> FastAPI:
    """The application, without its gate."""
    app = FastAPI(
        title="Limbeck",
        version=__version__,
        description="Experts behind one OpenAI-compatible endpoint.",
        docs_url=None,
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))],
        responses=REFUSALS,
    )
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)
    page.add(app)
    _add_looking(app, house)
    _add_writing(app, house)
    return app


# ---- looking ---------------------------------------------------------------------------------------------------------


def _add_looking(app: FastAPI, house: ServerState) -> None:
    @app.get("/health", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
    async def health(request: Request) -> Response:
        draining = request.scope["limbeck.gate"].draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        text = house.metrics.render(gauges(house, request.scope["limbeck.gate"]))
        return PlainTextResponse(text, media_type=PROMETHEUS)

    @app.get("/v1/models", response_model=schemas.Models)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(house, name) for name in house.routes.names()]})

    @app.get("/v1/models/{id:path}", response_model=schemas.ModelObject)
    async def model(id: Annotated[str, Path(max_length=256)]) -> Response:
        if id not in house.routes.names() and house.catalogue.find(id) is None:
            raise no_model(id, house.routes.names())
        return JSONResponse(_model(house, id))

    @app.get("/v1/experts", response_model=page.Experts)
    async def experts() -> Response:
        return JSONResponse(page.experts(house))


def _model(house: ServerState, name: str) -> dict[str, Any]:
    expert = house.catalogue.newest.get(name) or house.catalogue.versions.get(name)
    upstream = house.routes.upstream
    owner = "upstream" if upstream is not None and name == upstream.name and not expert else "limbeck"
    created = page.created_at(expert) if expert else 0
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def gauges(house: ServerState, gate: Any) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {
        "limbeck_in_flight": {(): len(gate.writing)},
        "limbeck_draining": {(): float(gate.draining)},
        "limbeck_experts": {
            (("state", "known"),): len(house.catalogue.newest),
            (("state", "open"),): len(house.pool.places),
            (("state", "damaged"),): len(house.catalogue.damaged),
        },
    }
    for place in house.pool.places.values():
        key = (("model", place.name),)
        found.setdefault("limbeck_model_bytes", {})[key] = place.num_bytes
        if place.opened is not None:
            stats = place.opened.engine.stats
            for name, value in (
                ("running", stats.running),
                ("waiting", stats.waiting),
                ("tokens_per_second", stats.tokens_per_second),
                ("sequence_bytes", stats.memory_bytes),
            ):
                found.setdefault(f"limbeck_{name}", {})[key] = value
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


def _add_writing(app: FastAPI, house: ServerState) -> None:
    limits = house.settings.limits

    @app.post("/v1/chat/completions", response_model=schemas.ChatCompletion, responses=STREAM)
    async def chat(body: ChatRequest, request: Request) -> Response:
        _bound(len(body.messages), limits.max_messages, "messages")
        _bound(body.n or 1, limits.max_n, "n")
        _bound(body.max_tokens or 1, limits.max_tokens, "max_tokens")
        _bound(body.max_completion_tokens or 1, limits.max_tokens, "max_completion_tokens")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise bad("max_tokens and max_completion_tokens are the same; give one of them.", "max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs needs logprobs: true.", "top_logprobs")
        _check_options(body)
        turns = turns_of(body.messages)
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        call = _noted(call_of(request), body, turns)
        chosen = await _chosen(house, call, body.model, said)
        if chosen.remote is not None:
            return await _passed_on(house, call, chosen, "/chat/completions", body)
        return await _written(house, call, chosen, "/chat/completions", body)

    @app.post("/v1/completions", response_model=schemas.Completion, responses=STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompts = body.prompts
        _bound(len(prompts), limits.max_prompts, "prompt")
        _bound(body.n or 1, limits.max_n, "n")
        _bound((body.n or 1) * len(prompts), schemas.MOST_CHOICES, "n")
        _bound(body.max_tokens or 1, limits.max_tokens, "max_tokens")
        if body.max_tokens == 0 and not body.echo:
            raise bad("max_tokens is 0, which is only of use with echo: true.", "max_tokens")
        _check_options(body)
        call = _noted(call_of(request), body, prompts)
        said = [prompts[0]] if isinstance(prompts[0], str) else []
        if len(prompts) > 1 and body.model == AUTO:
            raise bad("The model `auto` chooses for one prompt at a time.", "prompt")
        chosen = await _chosen(house, call, body.model, said)  # type: ignore[arg-type]
        if chosen.remote is not None:
            return await _passed_on(house, call, chosen, "/completions", body)
        return await _written(house, call, chosen, "/completions", body)


async def _written(
    house: ServerState, call: RequestContext, chosen: Chosen, path: str, body: ChatRequest | CompletionRequest
) -> Response:
    """The expert's answer, or the upstream's where the expert's own does not stand."""
    work, judge = await _work(house, call, chosen, path), house.routes.judge(chosen)
    instead = None if judge is None else lambda mean_logp: house.routes.doubted(chosen, judge, mean_logp)
    if isinstance(body, ChatRequest):
        answer = await writing.chat(work, body, instead)
    else:
        answer = await writing.completions(work, body, instead)
    if isinstance(answer, Response):
        return answer
    for kind, tokens in (("prompt", call.prompt_tokens), ("completion", call.completion_tokens)):
        house.metrics.count("limbeck_tokens_total", tokens, model=chosen.model, kind=kind)
    call.prompt_tokens = call.completion_tokens = 0
    _note_route(house, call, answer)
    return await _passed_on(house, call, answer, path, body)


def _check_options(body: schemas.Asked) -> None:
    if body.stream_options is not None and not body.stream:
        raise bad("stream_options needs stream: true.", "stream_options")


def _bound(found: int, most: int, param: str) -> None:
    if found > most:
        raise bad(f"{param} is {found:,}; this server allows {most:,}.", param)


def _noted(call: RequestContext, body: schemas.Asked, prompt: Any) -> RequestContext:
    call.user, call.prompt = body.user or body.safety_identifier, prompt
    return call


async def _chosen(house: ServerState, call: RequestContext, model: str, turns: list[str]) -> Chosen:
    chosen = house.routes.choose(model, turns)
    call.model = model if model in house.routes.names() else chosen.model
    _note_route(house, call, chosen)
    return chosen


def _note_route(house: ServerState, call: RequestContext, chosen: Chosen) -> None:
    call.expert, call.route = chosen.model, chosen.route
    house.metrics.count("limbeck_routes_total", model=chosen.model, route=chosen.route)


async def _work(house: ServerState, call: RequestContext, chosen: Chosen, path: str) -> writing.Generation:
    assert chosen.expert is not None
    try:
        async with asyncio.timeout_at(call.deadline):
            opened = await call.held.enter_async_context(house.pool.use(chosen.expert))
    except TimeoutError:
        raise timed_out() from None
    head = Envelope(_kind(path), chosen.model, opened.lm.fingerprint, chosen.field)
    return writing.Generation(call, opened, head, chosen.headers, house.settings.limits)


async def _passed_on(
    house: ServerState, call: RequestContext, chosen: Chosen, path: str, body: schemas.Asked
) -> Response:
    """The answer of another server."""
    assert chosen.remote is not None
    head = Envelope(_kind(path), chosen.model, None, chosen.field)
    sent = body.model_dump(exclude_unset=True)
    try:
        async with asyncio.timeout_at(call.deadline):
            if not body.stream:
                answer = await house.remotes.whole(chosen.remote, path, sent, head, call)
                return JSONResponse(answer, headers=chosen.headers)
            events = house.remotes.events(chosen.remote, path, sent, head, call)
            call.held.push_async_callback(events.aclose)
            first = await anext(events, None)  # so that a refusal is one, with its status
    except TimeoutError:
        raise timed_out() from None
    return EventStream(_again(first, events), call, chosen.headers)


def _kind(path: str) -> str:
    """`object` of an answer."""
    return "chat.completion" if "chat" in path else "text_completion"


async def _again(first: bytes | None, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    if first is not None:
        yield first
    async with contextlib.aclosing(rest):
        async for each in rest:
            yield each


# ---- refusals --------------------------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    call_of(request).code = error.code
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, explain(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths, wrong methods, bytes that are no text."""
    assert isinstance(error, HTTPException)
    said = {404: "There is nothing at this path.", 405: "This path does not take this method."}
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    found = ApiError(error.status_code, said.get(error.status_code, "The request cannot be read."), code=code)
    response = await _refused(request, found)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _broken(request: Request, error: Exception) -> Response:
    response = await _refused(request, ApiError(500, "The server failed. Its log says more.", code="internal_error"))
    response.headers["connection"] = "close"  # uvicorn closes it: clients must not send the next request on it
    return response
