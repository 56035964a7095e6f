"""The page: what it says, that it is one closed file, and that nothing it is given can break it."""

import base64
import copy
import hashlib
import json
import random
import re
from html.parser import HTMLParser

import pytest
from markupsafe import Markup, escape

from limbeck.report import charts
from limbeck.report.collect import collect
from limbeck.report.page import data_facts, headline, measures, render, stages, tiles, verdict, warnings
from tests.report.fake import RECIPE, make_run, write

EVIL = '<script>document.title="pwned"</script><img src=x onerror=alert(1)>\u202e\x1b[31m"\'&{{7*7}}'


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return collect(make_run(tmp_path_factory.mktemp("run"), steps=30))


@pytest.fixture(scope="module")
def page(files):
    return render(files)


def test_says_what_became_of_what_and_whether_it_helped(page):
    text = Elements(page).text
    for part in (
        "smollm2-135m",
        "stdlib-101m",
        "134.5M parameters became 99.1M: the teacher with 20 of its layers kept.",
        "Distillation helped",
        "On 240 held-out rows the student is closer to the teacher than its twin, and predicts the text better.",
        "\u22120.058 (95% interval \u22120.070 to \u22120.046)",
        "\u22120.289 (95% interval \u22120.312 to \u22120.267)",
        "+8.2 points (95% interval +7.3 to +9.1)",
        "71.2%",
        "1.4\u00d7",
        "asyncio",
        "2 min 51 s",
        "ce_weight: 0.0",
        "2.13.0",
    ):
        assert part in text, part


def test_every_part_is_there(page):
    titles = re.findall(r"<h[23][^>]*>([^<]*)", page)
    for title in (
        *("Scores", "Size, speed, quality", "In pictures", "KL by place in the text", "Calibration"),
        *(
            "Closeness and usefulness",
            "Cross-entropy of the text itself",
            "Agreement by topic",
            "Training loss",
            "KL while training",
            "Side by side",
            "What it took",
        ),
        *("Data", "Environment"),
    ):
        assert title in titles, title
    assert page.count("<svg") == 10


def test_one_closed_file(page):
    """No address is ever asked: no links, no imports, no fonts; and the policy forbids it besides."""
    elements = Elements(page)
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert not attributes.get(name) or attributes[name].startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import|//cdn|https?://(?!www\.w3\.org/)", page)
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    script = page.split("<script>")[1].split("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(page) < 400_000


def test_the_same_twice(files, page):
    assert render(files) == page


def test_marks_of_disagreement(page):
    elements = Elements(page)
    marks = [attributes for tag, attributes in elements.tags if tag == "mark" and "title" in attributes]
    assert {mark["class"] for mark in marks} == {"near", "far"}
    assert all(mark["title"].startswith("the teacher would have written “") for mark in marks)
    assert "as the teacher" in elements.text


def test_without_twin(tmp_path):
    page = render(collect(make_run(tmp_path, twin=False, steps=10)))
    assert "No twin was trained" in page and "train.twin: true" in page
    assert 'class="model twin"' not in page
    assert "Whether distillation helped cannot be said without a twin" in page


def test_before_evaluation(tmp_path):
    write(tmp_path / "recipe.yaml", RECIPE)
    page = render(collect(tmp_path))
    assert "Not evaluated yet" in page and "<table" not in page and "<svg" not in page
    assert "smollm2-135m" in page


def test_missing_files_leave_gaps(tmp_path):
    make_run(tmp_path, steps=10)
    for name in ("evaluate/details.json", "evaluate/answers.json", "train/student/metrics.jsonl", "recipe.yaml"):
        (tmp_path / name).unlink()
    page = render(collect(tmp_path))
    assert "Distillation helped" in page and "recipe.yaml is missing." in page
    assert "Side by side" not in page and "Calibration" not in page and "Training loss" in page


def test_verdict_states(files):
    for state in ("good", "mixed", "open", "bad"):
        assert verdict(with_verdict(files, state=state))["state"] == state
    old = {"state": None, "claim": None}  # runs of version 0.1 have a sentence and whether it helped
    for helped, state in ((True, "good"), (False, "bad"), (None, "open"), ("yes", "open"), (1, "open")):
        found = verdict(with_verdict(files, **old, helped=helped, sentence="It helped: on 9 rows: KL 1."))
        assert found["state"] == state and found["claim"] == "It helped" and found["rest"] == ["On 9 rows."]
    assert verdict(files_without(files, "verdict")) is None


def with_verdict(files, **changes):
    changed = copy.deepcopy(files)
    changed.summary["verdict"] |= changes
    return changed


def test_a_loss_is_amber_and_says_what_trades_it(files):
    advice = "The recipe weighs the text with 0 (objective.ce_weight): a higher weight gives more of the text."
    page = render(with_verdict(files, state="mixed", claim="A gain and a loss: on 9 rows", advice=advice))
    assert 'class="verdict mixed"' in page and advice in Elements(page).text


def test_a_speed_ratio_within_the_noise_of_one_shape_is_not_shown(files):
    changed = copy.deepcopy(files)
    assert "reading speed" in tiles(changed)[-1].label
    changed.summary["twin"]["tokens_per_second"] = 700.0  # of the student's shape, at half its speed
    assert "reading speed" not in tiles(changed)[-1].label


def test_nothing_is_as_the_teacher_where_no_teacher_read(files):
    changed = files_without(files, "teacher")
    text = Elements(render(changed)).text
    assert "as the teacher" not in text and "No teacher was there to read them" in text and "<mark" not in text


def files_without(files, *keys):
    changed = copy.deepcopy(files)
    for key in keys:
        del changed.summary[key]
    return changed


def test_numbers_that_were_not_measured_are_left_out(files):
    assert [tile.value for tile in tiles(files)] == ["71.2%", "0.412", "73.7%", "1.4\u00d7"]
    assert tiles(files_without(files, "student")) == []
    rows = {row.name: row.cells for row in measures(files)}
    assert rows["KL to the teacher"] == ("0.000", "0.412", "0.701")
    bare = copy.deepcopy(files)
    bare.details.clear()
    assert "Total variation" not in {row.name for row in measures(bare)}
    del bare.summary["twin"]["ece"]
    assert {row.name: row.cells for row in measures(bare)}["ECE"] == ("0.021", "0.034", "\u2013")


def test_stage_costs_beside_their_estimates(files):
    table = {stage["name"]: stage["cells"] for stage in stages(files)}
    assert table["data"][0] == ("4.2 s", "", "")
    took, guess, off = table["label"][0]
    assert (took, guess, off) == ("2 min 51 s", "2 min 39 s", "+8%")


def test_what_the_data_stage_counted(files):
    facts = dict(data_facts(files))
    assert facts["source"] == "the interpreter's standard library" and facts["topics"] == "9"
    assert facts["training rows"] == "4,171" and facts["duplicates dropped"] == "12"
    assert not [name for name in facts if "malformed" in name]  # none were
    assert "replies" not in facts  # runs of earlier versions did not count them
    counted = copy.deepcopy(files)
    counted.summary["data"] = {"replies": 4200, "ended": 4171}
    facts = dict(data_facts(counted))
    assert facts["replies"] == "4,200" and facts["replies that end in a token which stops generation"] == "4,171"


def test_shares_of_next_to_nothing_are_not_shown(files):
    changed = copy.deepcopy(files)
    changed.summary["stages"] = {"student": {"took": {"seconds": 0.2}, "estimated": {"seconds": 0.01}}}
    assert stages(changed)[0]["cells"][0] == ("0.2 s", "0.0 s", "")


def test_names_of_students(files):
    def how(student):
        changed = copy.deepcopy(files)
        changed.recipe["student"] = student
        return headline(changed)["how"]

    assert "the teacher with 3 of its layers kept" in how({"kind": "prune", "keep": [0, 1, 5]})
    assert "a new model of the teacher's architecture" in how({"kind": "scratch", "parameters": "17M"})
    assert "the pretrained model org/small" in how({"kind": "pretrained", "path": "org/small"})
    assert how({}) == how(7) and how({}).startswith("134.5M parameters became 99.1M.")
    changed = copy.deepcopy(files)
    changed.recipe["teacher"]["path"] = "/models/of/Someone/Big-7B/"
    assert headline(changed)["teacher"] == "Big-7B"


def test_code_of_strangers_is_said(files):
    changed = copy.deepcopy(files)
    changed.recipe["teacher"]["trust_remote_code"] = True
    assert any("teacher's authors" in text for text in warnings(changed))


def test_kl_lines_only_where_the_temperature_is_one(files, tmp_path):
    changed = copy.deepcopy(files)
    changed.recipe["objective"]["temperature"] = 2.0
    assert "held out: 0.701" in render(files) and "held out: 0.701" not in render(changed)


def test_hostile_text_everywhere(tmp_path):
    """Statement 30 of the fault list: escaped, visible, cut."""
    make_run(tmp_path, steps=5)
    huge = EVIL * 20_000
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary |= {
        "name": EVIL,
        "scope": huge,
        "warnings": [huge, EVIL],
        "data": {EVIL: EVIL, "notes": [EVIL], "topics": {EVIL: 1, "b": 2}},
    }
    summary["verdict"] |= {"sentence": EVIL, "claim": f"{EVIL}: {huge}", "figures": EVIL, "advice": huge}
    summary["environment"] = {"python": EVIL, "packages": {EVIL: EVIL}}
    summary["stages"] = {EVIL: {"took": {"seconds": 3}}}
    write(tmp_path / "summary.json", summary)
    write(tmp_path / "recipe.yaml", f"name: x\nteacher: {{path: {json.dumps(EVIL)}}}\n# {huge}")
    details = json.loads((tmp_path / "evaluate" / "details.json").read_text())
    details["topics"][0]["topic"] = huge
    write(tmp_path / "evaluate" / "details.json", details)
    pieces = [[EVIL, False, 0.5, EVIL], [huge, True, 1.0, ""], [EVIL, False, "x", None], ["short"], 7]
    one = {"topic": EVIL, "prompt": huge, "truth": huge, "answers": {"student": {"pieces": pieces}, EVIL: {}}}
    empty = {"prompt": "", "answers": {"teacher": {"pieces": [], "finish_reason": "stop"}}}
    write(tmp_path / "evaluate" / "answers.json", [one, empty, "not an entry", None])
    page = render(collect(tmp_path))
    elements = Elements(page)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in page and "\x1b" not in page and "\\u202e" in page and "{{7*7}}" in page
    assert "more characters]" in page and len(page) < 700_000
    assert "It ended at once, without a word." in page


def paths(value, here=()):
    """All places in a JSON value."""
    yield here
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(part, (*here, key))


JUNK = (None, True, -1, 0, 1e308, 10**400, float("nan"), "", "text", [], [1], [None], {}, {"a": 1}, [[1, 2], 3])


@pytest.mark.parametrize("seed", range(24))
def test_any_value_may_be_junk(files, monkeypatch, seed):
    """Whatever stands at whatever place of the files, there is a page. (Drawn, but not written out: that is slow.)"""
    monkeypatch.setattr(charts, "svg", lambda _figure, title: Markup(f"<svg>{escape(title)}</svg>"))
    draw, changed = random.Random(seed), copy.deepcopy(files)
    for _ in range(8):
        root = draw.choice([changed.summary, changed.details, changed.answers, changed.recipe])
        *outer, last = draw.choice([place for place in paths(root) if place])
        inner = root
        for key in outer:
            inner = inner[key]
        inner[last] = draw.choice(JUNK)
    assert "</html>" in render(changed)
