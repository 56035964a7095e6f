"""Chromium through its own protocol, over two pipes: pages are opened, used by keys, and looked at."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


class Page:
    """One tab. `console` holds what the page complained of."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._last = read, write, b"", 0
        self._session: str | None = None
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        sent = json.dumps({"id": self._last, "method": method, "params": params, **session}).encode() + b"\0"
        os.write(self._write, sent)
        while True:
            found = self._next()
            if found.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(found["params"])[:500])
            if found.get("id") == self._last:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, *, width: int = 1280, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 8.0) -> Any:
        until = time.monotonic() + seconds
        while not (found := self.js(expression)):
            assert time.monotonic() < until, f"{expression} never came true"
            time.sleep(0.03)
        return found

    def press(self, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        held = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 * ctrl + 8 * shift}
        text = {"text": "\r"} if key == "Enter" and not ctrl else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **held, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def shot(self, path: Path) -> None:
        height = self.js("document.documentElement.scrollHeight")
        width = self.js("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own, ended with the block."""
    assert BROWSER is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = shlex.join([BROWSER, *QUIET, f"--user-data-dir={profile}"])
    shell = f"exec {command} 3<&{to_read} 4>&{from_write}"
    process = subprocess.Popen(
        ["bash", "-c", shell], pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(from_write)
    try:
        page = Page(from_read, to_write)
        yield page
        with contextlib.suppress(OSError, AssertionError):
            page._session = None
            page.call("Browser.close")
    finally:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_write)
        os.close(from_read)
