"""Reports in a real headless browser: nothing sticks out, overlaps, is too small or too faint, or is loaded; they print."""

from __future__ import annotations

import json
import re

import pytest
from _browser import browser, look, printed, variant
from _report_extras import FEWER, HEALING, PLANNED, behaving, late, with_fewer_bits
from _report_records import HOST, artifacts, measurements, qualities, run_folder
from _study import judged, synthetic

from edgeprune import report as single
from edgeprune.report import beside, doc, page
from edgeprune.study import figures
from edgeprune.study import page as studies

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason="no chromium or google-chrome on the PATH"),
]
SCREENS = [("light", 320), ("light", 390), ("light", 768), ("dark", 1100), ("print", 688)]
PROBE = '<link rel="stylesheet" href="http://elsewhere.invalid/x.css"><main><section id="a">a</section></main>'


def full(folder):
    """A run with everything a report can show."""
    records = with_fewer_bits(130_305_000, 1.1)
    records["measurements"] = [
        *records["measurements"],
        late(PLANNED, 2016, 1.8),
        late("gguf/whole-Q8_0.gguf", 2016, 2.1),
    ]
    records["quality"] = [
        behaving(q, 0.43, 0.31) if q["subject"] in ("whole", PLANNED, FEWER) else q for q in records["quality"]
    ]
    run_folder(folder, **records)
    (folder / "healed").mkdir()
    (folder / "healed" / "healing.json").write_text(json.dumps(HEALING))
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    other = [m | {"host": HOST | {"cores": 8}} for m in measurements()]
    shifted = [q | {"kl": q["kl"] and 0.8 * q["kl"]} for q in qualities()]
    run_folder(folder / "other", measurements=other, quality=shifted)
    run_folder(folder / "bare", artifacts=artifacts()[:2])
    many = beside.build([full(folder / "full"), folder / "other", folder / "bare"])
    report = single.build(folder / "full")
    (folder / "study").mkdir()
    made = judged(synthetic(folder / "study")[-1])
    return {
        "one": (single.page_of(report), many.runs[0]),
        "many": (beside.page_of(many), many),
        "study": (studies.page_of(made, figures.drawn(made)), made),
    }


@pytest.fixture(scope="module")
def texts(pages):
    return {name: page.to_html(made) for name, (made, _) in pages.items()}


@pytest.fixture(scope="module")
def seen(texts, tmp_path_factory):
    """By page, kind and width: what the browser shows."""
    served = {
        f"{name}-{kind}": variant(text, kind) for name, text in texts.items() for kind in ("light", "dark", "print")
    }
    frames = [(f"{name}-{kind}", width) for name in texts for kind, width in SCREENS]
    *found, probed = look(served | {"probe": PROBE}, [*frames, ("probe", 390)], tmp_path_factory.mktemp("profile"))
    return dict(zip(frames, found, strict=True)), probed


def test_nothing_sticks_out_at_any_width(seen):
    for frame, shown in seen[0].items():
        assert shown["width"] == frame[1]
        assert shown["overflow"] <= 0 and not shown["past"], f"{frame}: {shown['past']}"


def test_plots_can_be_read(seen):
    """Text is no smaller than 9 px on a phone, 8 on a narrow one and on paper; labels cover no other and stay in their plot."""
    for frame, shown in seen[0].items():
        assert shown["plots"] >= 6
        assert not shown["overlaps"] and not shown["outside"], frame
        assert shown["smallest"] >= (9 if frame[1] >= 390 and "print" not in frame[0] else 8), frame


def test_text_stands_out_from_its_ground(seen):
    """WCAG 2.1 asks for 4.5 to 1."""
    for frame, shown in seen[0].items():
        assert not shown["faint"], f"{frame}: {shown['faint'][:5]}"


def test_every_section_is_there_and_linked(seen, pages):
    for (name, _), shown in seen[0].items():
        made: doc.Page = pages[name.split("-")[0]][0]
        assert [section for section, _ in shown["sections"]] == [s.id for s in made.sections]
        assert all(height > 40 for _, height in shown["sections"])
        assert [link for link, _ in shown["links"]] == [f"#{s.id}" for s in made.sections]
        assert all(bool(rects) != ("print" in name) for _, rects in shown["links"]), "on paper no links"


def test_what_the_markdown_says_can_be_seen(seen, pages):
    made, _ = pages["one"]
    shown = re.sub(r"\s+", " ", seen[0]["one-dark", 1100]["text"])
    plain = doc.to_markdown(made).replace("\\", "").replace("**", "")
    numbers = set(re.findall(r"\d+\.\d+", plain))
    assert len(numbers) > 150 and not [n for n in numbers if n not in shown]


def test_the_pages_ask_for_nothing(seen):
    """Though their content policy was taken off; a page that does ask is noticed."""
    found, probed = seen
    assert not any(shown["resources"] for shown in found.values())
    assert probed["resources"] == ["http://elsewhere.invalid/x.css"]


def test_they_print_on_a4_with_every_section(texts, pages, tmp_path):
    for name, (made, _) in pages.items():
        pdf, asked = printed(texts[name], tmp_path / f"{name}.pdf", tmp_path / f"profile-{name}")
        assert set(asked) <= {"page", "favicon.ico"}
        sheets = len(re.findall(rb"/Type\s*/Page\b", pdf))
        assert 3 <= sheets <= 15
        boxes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", pdf)}
        assert all(abs(w - 595.3) < 2 and abs(h - 841.9) < 2 for _, _, w, h in boxes) and boxes
        titles = b" ".join(re.findall(rb"/Title\s*\(([^\n]*)\)", pdf)).decode("latin-1")
        assert [s.title for s in made.sections if s.title not in titles] == []
