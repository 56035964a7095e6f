"""The page in a real browser: by keyboard, on a phone and a desk, light and dark, with hostile text everywhere."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from limbeck.experts import Registry, Scope
from limbeck.serve import page as page_module
from tests.serve.browser import BROWSER, Page, browsing
from tests.serve.conftest import KEY, Decided, Router, expert_card, running, teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serve.conftest import Running

EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>\u202e"\'&amp;</pre></textarea>'
browser_only = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page was not looked at in a browser"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Iterator[Running]:
    """A locked server with hostile cards, a damaged expert, a router and a teacher that writes markup."""
    path = tmp_path_factory.mktemp("registry")
    registry = Registry(path)
    score = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 64}
    words = {**score, "value": 12.5, "low": 11.0, "high": 14.0}
    scores = {who: {"agreement": score, "perplexity": words, EVIL: score} for who in ("student", "teacher", "twin")}
    scope = Scope(EVIL, EVIL + "w" * 300, ("en", EVIL), (EVIL, "Read me note 1."), (EVIL,), chat=True)
    registry.add("code", "1.0.0", expert_card("code"), tiny_folder("llama"))
    card = replace(expert_card("x", scores=scores, machine=EVIL, teacher=EVIL, licence=EVIL), scope=scope)
    registry.add("hostile", "1.0.0", card, tiny_folder("llama", seed=1))
    shutil.copytree(path / "experts" / "code" / "1.0.0", path / "experts" / "broken" / "1.0.0")
    router = Router(Decided("code", 0.93, EVIL))
    with pytest.MonkeyPatch.context() as patch, teacher(says=f"{EVIL} and more") as upstream:
        patch.setenv("PAGE_KEY", KEY)
        told = (f"upstream.url={upstream.url}", "upstream.model=teacher", "upstream.prices={input: 1000, output: 2000}")
        with running(path, "keys={page: PAGE_KEY}", *told, router=router) as found:
            yield found


def unlock(tab: Page, server: Running, **told: Any) -> None:
    tab.open(f"{server.url}/", **told)
    tab.wait("document.activeElement?.id === 'key'")
    tab.write(KEY)
    tab.press("Enter")
    tab.wait("document.querySelectorAll('.expert').length === 2")


@pytest.mark.usefixtures("shown")
class TestInABrowser:
    pytestmark = browser_only

    def test_a_key_is_asked_for_and_kept_nowhere(self, tab: Page, shown: Running) -> None:
        tab.open(f"{shown.url}/")
        tab.wait("document.activeElement?.id === 'key'")
        tab.write("wrong")
        tab.press("Enter")
        tab.wait("document.getElementById('wrong').textContent.includes('not a key')")
        assert tab.js("document.getElementById('playground').hidden")
        tab.write(KEY)
        tab.press("Enter")
        tab.wait("document.querySelectorAll('.expert').length === 2")
        kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        assert KEY not in tab.js(kept) + tab.js("document.documentElement.outerHTML")
        assert KEY not in tab.js("document.getElementById('key').value")

    def test_hostile_text_is_text(self, tab: Page, shown: Running) -> None:
        tab.console.clear()
        unlock(tab, shown)
        tab.js("document.getElementById('most').value = 20")
        tab.js("document.getElementById('prompt').value = 'Read me note 1.'")
        tab.js("document.getElementById('prompt').focus()")
        tab.press("Enter", ctrl=True)
        tab.wait("document.querySelectorAll('#totals dd').length === 4 && !document.querySelector('[aria-busy=true]')")
        assert tab.js("window.evil") is None
        assert tab.js("document.querySelectorAll('main img, main script').length") == 0
        answers = tab.js("[...document.querySelectorAll('.answer pre')].map((one) => one.textContent)")
        assert len(answers) == 2 and answers[0] and answers[1] == f"{EVIL} and more"
        reason = tab.js("document.querySelector('.answer .reason').textContent")
        assert reason == f"auto: code@1.0.0 (93 %). {EVIL}"
        assert tab.js("document.querySelectorAll('.expert')[1].querySelector('p').textContent").startswith(EVIL)
        totals = tab.js("[...document.querySelectorAll('#totals dd')].map((one) => one.textContent)")
        assert 1 <= int(totals[0]) <= 20  # the expert may end its reply
        assert totals[1:3] == ["5", f"{(10 * 1000 + 5 * 2000) / 1e6:.6f}"] and float(totals[3]) > 0
        assert "tokens/s" in tab.js("document.querySelector('.answer .note').textContent")
        assert [one for one in tab.console if "401" not in one] == []

    def test_damage_is_shown(self, tab: Page, shown: Running) -> None:
        unlock(tab, shown)
        told = tab.js("document.querySelector('.broken').textContent")
        assert told.startswith("broken/1.0.0: damaged, not served") and "its card is that of" in told
        assert tab.js("document.getElementById('state').textContent") == "2 experts, 1 damaged, teacher teacher"
        assert "1.0.0" in tab.js("document.querySelector('.expert .tag').textContent")

    def test_everything_can_be_done_by_keyboard(self, tab: Page, shown: Running) -> None:
        unlock(tab, shown)
        tab.js("document.activeElement.blur()")
        order = []
        for _ in range(5):
            tab.press("Tab")
            order.append(tab.js("document.activeElement.id || document.activeElement.textContent"))
            assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert order == ["prompt", "model", "most", "go", "What is code?"]
        tab.press("Enter")
        assert tab.js("document.getElementById('prompt').value") == "What is code?"
        assert tab.js("document.activeElement.id") == "prompt"

    def test_an_answer_can_be_stopped(self, tab: Page, shown: Running) -> None:
        unlock(tab, shown)
        tab.js("document.getElementById('most').value = 100")
        tab.js("document.getElementById('prompt').value = 'hi'")
        tab.js("document.getElementById('ask').requestSubmit()")
        tab.press("Escape")
        tab.wait("document.getElementById('stop').disabled")
        told = tab.js("[...document.querySelectorAll('.answer .bad')].map((one) => one.textContent)")
        assert set(told) == {"Stopped."}

    def test_refusals_are_shown(self, tab: Page, shown: Running) -> None:
        unlock(tab, shown)
        tab.js("document.getElementById('most').value = 4000")
        tab.js("document.getElementById('prompt').value = 'hi'")
        tab.js("document.getElementById('ask').requestSubmit()")
        tab.wait("document.getElementById('stop').disabled && !!document.querySelector('.answer .bad')")
        assert "context length is 128" in tab.js("document.querySelector('.answer .bad').textContent")

    @pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (768, False), (1280, True)])
    def test_nothing_sticks_out(self, tab: Page, shown: Running, width: int, dark: bool) -> None:
        unlock(tab, shown, width=width, dark=dark)
        tab.js("document.getElementById('most').value = 5")
        tab.js("document.getElementById('prompt').value = 'hi'")
        tab.js("document.getElementById('ask').requestSubmit()")
        tab.wait("document.querySelectorAll('#totals dd').length >= 4 && !document.querySelector('[aria-busy=true]')")
        out = """[...document.querySelectorAll('body *')].filter((one) => !one.closest('.sr')
          && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.className || one.tagName)"""
        assert tab.js(out) == []
        assert tab.js("document.documentElement.scrollWidth") <= width
        paper = [int(one) for one in re.findall(r"\d+", tab.js("getComputedStyle(document.body).backgroundColor"))]
        assert max(paper) < 40 if dark else min(paper) > 230
        small = """[...document.querySelectorAll('#ask button, #ask select, #ask input')]
          .filter((one) => one.getBoundingClientRect().height < 44).length"""
        assert tab.js(small) == 0  # big enough for a thumb

    def test_words_stand_out_from_their_ground(self, tab: Page, shown: Running) -> None:
        """WCAG 2.2 AA: 4.5 to 1."""
        for dark in (False, True):
            unlock(tab, shown, dark=dark)
            pairs = tab.js(PAIRS)
            low = {name for ink, ground, name in pairs if contrast(ink, ground) < 4.5}
            assert low <= {"KBD"}


PAIRS = """
(() => {
  const has_text = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const clear = (one) => /, 0\\)$|transparent/.test(getComputedStyle(one).backgroundColor);
  const seen = [...document.querySelectorAll("main *")].filter((one) => has_text(one) && !one.disabled);
  return seen.filter((one) => one.getClientRects().length).map((one) => {
    let ground = one;
    while (ground.parentElement && clear(ground)) ground = ground.parentElement;
    const colour = clear(ground) ? getComputedStyle(document.body).backgroundColor
      : getComputedStyle(ground).backgroundColor;
    return [getComputedStyle(one).color, colour, one.className || one.tagName];
  });
})()
"""


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_asks_nobody_else() -> None:
    """No network, no build, no markup from text; nothing that its own policy would refuse."""
    for name in ("page.html", "page.css", "page.js"):
        text = (Path(page_module.__file__).parent / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|//[a-z]|@import|url\(", text.replace("// ", ""))
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|localStorage|sessionStorage|cookie", text
        )
        assert not re.search(r"\son\w+=|style=", text)


@pytest.mark.slow
def test_what_the_page_shows_is_json(server: Running) -> None:
    found = server.client.get("/v1/experts").json()
    assert [one["name"] for one in found["experts"]] == ["code", "weather"]
    first = found["experts"][0]
    assert first["scores"]["student"]["agreement"] == {"value": 0.8, "low": 0.7, "high": 0.9, "n": 64}
    assert first["domain"] == "code" and first["examples"] == ["What is code?"] and found["upstream"] is None
    assert isinstance(found, dict) and found["auto"] is False
    assert httpx2.get(f"{server.url}/page.js", trust_env=False).headers["content-type"].startswith("text/javascript")
