"""The page in a real browser: no errors, its script runs under its own policy, and it fits a phone and a desk."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from limbeck.report.page import run_report
from tests.report.fake import make_run, write
from tests.report.test_page import EVIL

if TYPE_CHECKING:
    from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium on this machine: the report was not looked at in a browser"
    ),
]
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
)
# A window is never narrower than 500 pixels; a frame is what it is told to be.
FRAME = """<!doctype html><script>
addEventListener("message", (event) => (document.documentElement.dataset.measured = event.data));
</script><iframe src="measured.html" width="WIDTH" height="800" style="border: 0"></iframe>"""
MEASURE = """<script>
addEventListener("load", () => {
  const page = document.documentElement, wide = innerWidth;
  const out = [...document.querySelectorAll("body *")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.right > wide + 1 && !each.closest(".recipe, .given pre, .sr");
  });
  parent.postMessage([page.scrollWidth, wide, out.map((each) => each.className || each.tagName)].join(" "), "*");
});
</script>"""


def browse(page: Path, width: int, *extra: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = page.parent / f"profile{width}"
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},900", *extra, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run whose names, texts and tokens are long and hostile, in the places that are hard to fit."""
    run = make_run(tmp_path_factory.mktemp("run"), steps=40)
    long = {"topic": "x" * 300, "prompt": "y" * 5000, "truth": EVIL, "answers": {}}
    for name in ("teacher", "student", "twin"):
        long["answers"][name] = {"pieces": [["z" * 400, False, 0.01, EVIL], [EVIL, True, 1.0, ""]]}
    write(run / "evaluate" / "answers.json", [long])
    recipe = (
        (run / "recipe.yaml")
        .read_text()
        .replace("smollm2-135m", "Organisation/A-very-long-name-of-a-model-" + "7" * 40)
    )
    write(run / "recipe.yaml", recipe + f"# {'w' * 500}\n")
    return run_report(run)


@pytest.fixture(scope="module")
def measured(page):
    """The page without its policy, with a script that measures it."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(), count=1)
    copy = page.with_name("measured.html")
    copy.write_text(html.replace("</body>", f"{MEASURE}</body>"))
    return copy


def test_script_runs_and_nothing_is_refused(page):
    done = browse(page, 1280, "--dump-dom")
    assert '<button type="button" class="copy" data-copies="recipe">' in done.stdout, "the script did not run"
    assert "<title>A-very-long-name" in done.stdout, "text of the run was executed"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Content Security Policy" in line]
    assert console == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_sticks_out(measured, width):
    frame = measured.with_name(f"frame{width}.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    done = browse(frame, 1400, "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r'data-measured="(\d+) (\d+) ([^"]*)"', done.stdout)
    assert found is not None
    scroll_width, inner_width, outside = int(found[1]), int(found[2]), found[3]
    assert inner_width == width
    assert scroll_width <= inner_width and outside == ""


@pytest.mark.parametrize(("width", "scheme"), [(390, 1), (1280, 1), (1280, 0)])
def test_is_drawn_light_and_dark(page, tmp_path, width, scheme):
    shot = tmp_path / "shot.png"
    browse(page, width, f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={scheme}")
    picture = Image.open(shot).convert("RGB")
    assert picture.width == width
    corner = picture.getpixel((2, 2))
    assert (min(corner) > 230) if scheme else (max(corner) < 40)
    assert len(picture.getcolors(2**20) or range(2**20)) > 100  # text and charts, not an empty sheet


def test_a_marked_token_tells_what_the_teacher_would_have_written(page):
    """Tapping a mark shows its hint below the answers."""
    tap = """<script>addEventListener("load", () => document.querySelector("article mark").click());</script>"""
    copy = page.with_name("tapped.html")
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(), count=1)
    copy.write_text(html.replace("</body>", f"{tap}</body>"))
    done = browse(copy, 1280, "--dump-dom")
    hint = re.search(r'<p class="hint" aria-live="polite">([^<]*)</p>', done.stdout)
    assert hint is not None and hint[1].startswith("the teacher would have written “")
    assert 'class="far on"' in done.stdout


def test_can_be_printed(page, tmp_path):
    sheet = tmp_path / "report.pdf"
    browse(page, 1280, f"--print-to-pdf={sheet}", "--no-pdf-header-footer")
    assert sheet.read_bytes().startswith(b"%PDF") and sheet.stat().st_size > 20_000
