"""`limbeck capture`: the proxy until it is asked to stop, with a line a minute on what became of the traffic."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from limbeck.capture.proxy import GRACE_SECONDS, serve
from limbeck.system.net import is_loopback
from limbeck.system.signals import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.capture import CaptureSettings
    from limbeck.capture.proxy import Proxy

MINUTE = 60.0
TROUBLE_SECONDS = 1.0


def run_capture(settings: CaptureSettings, *, on_message: Callable[[str], None]) -> dict[str, Any]:
    """Relay and record until SIGTERM or Ctrl-C; a second one ends at once. Returns the last counts.

    Raises CaptureError when the address cannot be used, RunDirError when the store is in use, StoreError when it cannot
    be written. Later trouble with the store is told, and never ends the traffic.
    """
    return asyncio.run(_run(settings, on_message))


async def _run(settings: CaptureSettings, on_message: Callable[[str], None]) -> dict[str, Any]:
    asked = asyncio.Event()
    stop_on_signals(asked)
    async with serve(settings) as proxy:
        on_message(_beginning(proxy))
        await _watch(proxy, asked, on_message)
        if proxy.busy:
            on_message(f"stopping: {len(proxy.busy)} answers have {GRACE_SECONDS:.0f} s to end.")
    status = proxy.status()
    on_message(f"stopped. {counts(status)}")
    return status


def _beginning(proxy: Proxy) -> str:
    settings, (host, port) = proxy.settings, proxy.address
    shown = f"[{host}]" if ":" in host else host
    warning = "" if is_loopback(settings.host) else " Other machines can reach it."
    return (
        f"capturing {settings.upstream} in {settings.store}; clients use base_url http://{shown}:{port}/v1 and their "
        f"own key.{warning} Counts: http://{shown}:{port}/-/status"
    )


async def _watch(proxy: Proxy, asked: asyncio.Event, on_message: Callable[[str], None]) -> None:
    """A line a minute while there is traffic, and one whenever the store begins or ceases to be in trouble."""
    told, trouble, left = proxy.status(), "", MINUTE
    while not asked.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), TROUBLE_SECONDS)
        status = proxy.status()
        if status["trouble"] != trouble:
            trouble = status["trouble"]
            on_message(f"warning: {trouble}" if trouble else "the store is written again.")
        left -= TROUBLE_SECONDS
        if left <= 0:
            left = MINUTE
            if status["requests"] != told["requests"]:
                on_message(counts(status))
            told = status


def counts(status: dict[str, Any]) -> str:
    """ "1,204 requests: 1,180 completions recorded (3 cut), 20 sampled out, 4 unreadable." Zeros are left out."""
    names = ("sampled_out", "dropped", "failed", "full", "too_large", "unreadable", "waiting")
    words = {"full": "not kept by the full store", "failed": "lost by the store"}
    rest = [f"{status[name]:,} {words.get(name, name.replace('_', ' '))}" for name in names if status[name]]
    cut = f" ({status['cut']:,} cut)" if status["cut"] else ""
    listed = ", ".join([f"{status['recorded']:,} completions recorded{cut}", *rest])
    return f"{status['requests']:,} requests: {listed}."
