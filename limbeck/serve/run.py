"""`limbeck serve`: a registry's experts behind one endpoint, until the server is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import MissingExtra, RecipeError, StoreError
from limbeck.experts import Registry
from limbeck.router.router import JSON_FILE, Router, experts_fingerprint
from limbeck.serve.dispatch import Catalogue, Routes
from limbeck.serve.errors import ApiError
from limbeck.serve.limits import Keys, Rates
from limbeck.serve.logs import Log
from limbeck.serve.pool import ExpertPool, opener
from limbeck.serve.upstream import UpstreamModel, UpstreamModels
from limbeck.system.device import total_memory
from limbeck.system.net import is_loopback
from limbeck.system.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.experts import Expert
    from limbeck.serve.app import ServerState
    from limbeck.serve.middleware import LimitsMiddleware
    from limbeck.serve.pool import LoadedExpert
    from limbeck.serve.settings import Serving


@dataclass(frozen=True)
class Built:
    """A server that does not listen yet."""

    house: ServerState
    gate: LimitsMiddleware
    log: Log


def run_serve(registry: Path, settings: Serving, *, on_message: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and return when answers under way are sent.

    Raises MissingExtra without the packages, ExpertError when there is no registry, RecipeError for settings that do
    not fit it, for a key that is missing, and for an address that cannot be used.
    """
    built = build(registry, settings, on_message=on_message)
    asyncio.run(_until_signalled(built, on_message))


def build(
    registry: Path,
    settings: Serving,
    *,
    on_message: Callable[[str], None],
    open_with: Callable[[Serving], Callable[[Expert, int], LoadedExpert]] | None = None,
    router: Router | None = None,
) -> Built:
    """All parts of the server, put together; `open_with` and `router` stand in for what
    opens experts and for the registry's router. Raises as `run_serve`."""
    try:
        from limbeck.serve.app import ServerState, make_app
        from limbeck.serve.middleware import LimitsMiddleware
        from limbeck.serve.prometheus import Metrics
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", "limbeck serve") from error
    metrics, log = Metrics(), Log(on_message, settings.log_prompts)
    catalogue = Catalogue(Registry(registry))
    catalogue.look()
    backends = {name: UpstreamModel(name, url, name) for name, url in settings.backends.items()}
    upstream = None if settings.upstream is None else UpstreamModel.of(settings.upstream)
    no_router = ""
    if router is None:
        router, no_router = _router(registry, catalogue, log)
    routes = Routes(settings.routing, catalogue, metrics, router, upstream, backends, no_router)
    _refuse_unfitting(settings, routes)
    budget, sequence_bytes = settings.bytes_of(total_memory())
    limits = settings.limits
    opened, check = (open_with or opener)(settings), catalogue.registry.check
    pool = ExpertPool(opened, check, budget, sequence_bytes, limits.open_seconds, metrics, log)
    house = ServerState(settings, catalogue, pool, routes, UpstreamModels(metrics), metrics)
    rates = Rates(limits.requests_per_minute, limits.tokens_per_minute)
    gate = LimitsMiddleware(make_app(house), Keys.read(settings.keys), limits, rates, metrics, log, settings.host)
    return Built(house, gate, log)


def _router(registry: Path, catalogue: Catalogue, log: Log) -> tuple[Router | None, str]:
    """The registry's router, or None and why it cannot be used ("" where there is none). Experts serve without it."""
    folder = registry / "router"
    if not (folder / JSON_FILE).exists():
        return None, ""
    try:
        router = Router.open(folder)
    except StoreError as error:
        log.event("router_damaged", "error", reason=str(error))
        return None, str(error)
    now = {name: expert.version for name, expert in catalogue.newest.items()}
    if router.settings.fingerprint != experts_fingerprint(now):
        log.event("router_old", "warning", fitted_on=router.settings.fitted_on, experts=now)
    return router, ""


def _refuse_unfitting(settings: Serving, routes: Routes) -> None:
    """Settings against the registry. Raises RecipeError."""
    known = set(routes.catalogue.newest)
    if missing := [name for name in settings.preload if name not in known]:
        raise RecipeError(
            f"preload names {missing[0]!r}, and the registry has {', '.join(sorted(known)) or 'nothing'}."
        )
    if routes.upstream is not None and routes.upstream.name in known | set(settings.backends):
        raise RecipeError(
            f"upstream.model is {routes.upstream.name!r}, and so is an expert. Two models cannot have one name; rename "
            "the expert."
        )
    if settings.routing != type(settings.routing)() and routes.router is None and not routes.no_router:
        raise RecipeError(
            "`routing` has no effect: this registry has no router. Fit one (limbeck route fit), or remove the settings."
        )
    if settings.routing.cascade and routes.router is not None and not routes.router.cascades:
        raise RecipeError(
            "routing.cascade has no effect: the router was fitted without the experts' own replies, so it cannot say "
            "when one is probably wrong. Fit it again with judged replies, or remove the setting."
        )


async def _until_signalled(built: Built, on_message: Callable[[str], None]) -> None:
    asked = asyncio.Event()
    stop_on_signals(asked)
    await serve_until(asked, built, lambda host, port: on_message(_beginning(built, host, port)))


async def serve_until(asked: asyncio.Event, built: Built, ready: Callable[[str, int], None]) -> None:
    """Listen until `asked`, then drain, and close everything; `ready` is told the address. Raises RecipeError for an
    address that cannot be used."""
    from limbeck.serve.server import bind, listen

    settings, house = built.house.settings, built.house
    try:
        bound = bind(settings.host, settings.port)
    except OSError as error:
        raise RecipeError(
            f"host {settings.host}, port {settings.port} cannot be used: {error.strerror}. Choose another port=N; 0 "
            "takes a free one."
        ) from error
    background = [
        asyncio.create_task(house.pool.keep_tidy(settings.ttl_seconds)),
        asyncio.create_task(house.catalogue.keep_looking(settings.rescan_seconds, built.log)),
    ]

    try:
        for name in settings.preload:
            with contextlib.suppress(ApiError):  # it is in the log, and the others serve
                async with house.pool.use(house.catalogue.newest[name]):
                    pass
        host, port = bound.getsockname()[:2]
        await listen(built.gate, settings, bound, lambda: ready(host, port), asked)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await house.pool.close()
        await house.remotes.close()
    built.log.event("stopped")


def _beginning(built: Built, host: str, port: int) -> str:
    settings, catalogue = built.house.settings, built.house.catalogue
    shown = f"[{host}]" if ":" in host else host
    damaged = f" Damaged, and left out: {', '.join(sorted(catalogue.damaged))}." if catalogue.damaged else ""
    open_door = "" if settings.keys else " Whoever reaches it may ask: no keys are set."
    assert settings.keys or is_loopback(settings.host)
    names = ", ".join(built.house.routes.names()) or "no models"
    return f"serving {names} at http://{shown}:{port}/v1; the page is http://{shown}:{port}/{damaged}{open_door}"
