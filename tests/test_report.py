"""Reports from hand-made records (tests/_report_records.py)."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from _report_records import (
    TEXT,
    L,
    artifacts,
    measurements,
    plan,
    predictions,
    qualities,
    run_folder,
    scores,
)

from edgeprune import report as report_module
from edgeprune.blocks import whole
from edgeprune.errors import InputRejected, UsageError

SVG = "{http://www.w3.org/2000/svg}"
NOTHING = dict.fromkeys(("device", "model", "scores", "artifacts", "measurements", "quality", "predictions", "run"))


def made(tmp_path: Path, **changes):
    return report_module.build(run_folder(tmp_path / "run", **changes))


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """The report of the records as they are."""
    return made(tmp_path_factory.mktemp("standard"))


@pytest.fixture(scope="module")
def page(standard):
    """Its page: drawing takes two seconds."""
    return report_module.render_html(standard)


def line(report, name: str):
    return next(b for b in report.verdict if b.line == name)


def with_memory(mb: float) -> list[dict]:
    """The planned file's process takes `mb` MB."""
    return [
        m | {"peak_rss_bytes": 50_000_000 + int(mb * 1e6)} if m["artifact"] == "gguf/pruned-Q8_0.gguf" else m
        for m in measurements()
    ]


# --- the verdict --------------------------------------------------------------------------------
# By hand: the cache is 19,660,800 bytes for 2,048 tokens and runs open 513, so 19,660,800 * 1535/2048 = 14,736,000 are missing.


@pytest.mark.parametrize(
    ("mb", "verdict", "word"),
    [
        (155.264, "met", "Fits"),  # 155,264,000 + 14,736,000 is the limit exactly
        (155.265, "not measured", "Not yet shown to fit"),  # the process fits, with its full cache it would not
        (170.0, "not measured", "Not yet shown to fit"),
        (170.001, "missed", "Does not fit"),
    ],
)
def test_memory_is_met_with_the_full_cache_or_not_at_all(tmp_path, mb, verdict, word):
    report = made(tmp_path, measurements=with_memory(mb))
    assert line(report, "memory").verdict == verdict
    assert line(report, "memory").measured == int(mb * 1e6)
    assert report.headline.startswith(word)


def test_speed_lines_are_medians_of_the_planned_file(tmp_path):
    report = made(tmp_path)
    # 74.6 tok/s times the wobble's median 1.0; 512 tokens at 489 tok/s
    assert line(report, "decode speed").measured == pytest.approx(74.6, rel=1e-6)
    assert line(report, "time to first token").measured == pytest.approx(512 / 489, rel=1e-6)
    assert [b.verdict for b in report.verdict] == ["met"] * 3


def test_a_prompt_of_another_length_is_no_measurement(tmp_path):
    budget = plan()["budget"] | {"prompt_tokens": 1024}
    assert line(made(tmp_path, plan=plan(budget=budget)), "time to first token").verdict == "not measured"


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_another_machine_measures_no_speed(tmp_path, backend):
    report = made(tmp_path, plan=plan(device="jetson-agx-orin-32gb", backend=backend))
    assert line(report, "memory").verdict == "met"
    assert line(report, "decode speed").verdict == "not measured" and line(report, "decode speed").measured is None
    assert report.headline.startswith("Not yet shown to fit") and "measured on another machine" in report.headline
    assert any("device was not at hand" in r for r in report.risks)
    assert any("cuda was not run" in r for r in report.risks) == (backend == "cuda")
    assert report.device is None and any("device.json is host" in r for r in report.risks)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (26.9, "; perplexity holds, from 26.2 to 26.9."),
        (29.0, "; perplexity rises from 26.2 to 29."),
        (68.0, ", but perplexity rises from 26.2 to 68: heal before shipping."),
        (3000.0, ", but perplexity rises from 26.2 to 3,000: this model no longer works, remove less or heal."),
    ],
)
def test_the_headline_tells_the_price(tmp_path, after, words):
    changed = [q | {"perplexity": after} if q["subject"] == "gguf/pruned-Q8_0.gguf" else q for q in qualities()]
    assert made(tmp_path, quality=changed).headline.endswith(words)


def test_results_of_another_file_do_not_count(tmp_path):
    stale = [
        m | {"artifact_sha256": "0" * 64} if m["artifact"] == "gguf/pruned-Q8_0.gguf" else m for m in measurements()
    ]
    report = made(tmp_path, measurements=stale)
    assert {b.verdict for b in report.verdict} == {"not measured"}
    assert any("another SHA-256" in r for r in report.risks)


def test_a_plan_that_removes_nothing_is_not_told_to_heal(tmp_path):
    blocks = [b.model_dump() for b in whole(L)]
    kept = [a | {"n_blocks": L} for a in artifacts() if "pruned" in a["path"]]
    report = made(tmp_path, plan=plan(blocks=blocks, removed=""), artifacts=kept)
    assert "heal" not in report.headline and "quantisation alone" in report.headline
    assert "pruned" not in report_module.render_md(report).replace("pruned-", "")


# --- what is missing, what is broken ------------------------------------------------------------


def test_a_bare_plan_says_not_measured_everywhere(tmp_path):
    report = made(tmp_path, **NOTHING)
    assert {b.verdict for b in report.verdict} == {"not measured"} and all(b.measured is None for b in report.verdict)
    for text in (report_module.render_html(report), report_module.render_md(report)):
        assert text.count("not measured") >= 9
        assert "Speed is not measured" in text and "memory is not measured" in text


@pytest.mark.slow
def test_each_optional_record_may_be_missing(tmp_path):
    for name in NOTHING:
        report = made(tmp_path / name, **{name: None})
        assert "## 10. Sign-off" in report_module.render_md(report)
        if name in ("artifacts", "measurements", "quality", "predictions"):  # plots lose their data
            assert 'id="signoff"' in report_module.render_html(report)


def test_no_plan_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputRejected) as e:
            report_module.build(folder)
        assert str(folder) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("plan", "{", ("plan.json", "Invalid JSON")),
        ("artifacts", '[{"path": 3}]', ("artifacts.json", "0.path")),
        ("measurements", "{}", ("measurements.json", "document")),
        ("predictions", '{"a": {"file_bytes": "x"}}', ("predictions.json", "a.file_bytes")),
        ("device", '{"id": "\\ud800"}', ("device.json",)),
    ],
)
def test_malformed_records_name_file_and_field(tmp_path, name, text, words):
    folder = run_folder(tmp_path)
    (folder / f"{name}.json").write_text(text)
    with pytest.raises(InputRejected) as e:
        report_module.build(folder)
    assert all(w in str(e.value) for w in words) and "\n" not in str(e.value)


def test_scores_of_other_weights_are_left_out(tmp_path):
    report = made(tmp_path, scores=scores() | {"fingerprint": "e" * 64})
    assert report.scores is None and any("other weights" in r for r in report.risks)


def test_quality_on_the_scoring_text_is_flagged(tmp_path):
    assert not any("flatter" in r for r in made(tmp_path).risks)
    same = scores() | {"text": TEXT}
    assert any("flatter" in r for r in made(tmp_path / "same", scores=same).risks)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert not re.search(r"<(script|link|iframe|object|embed|img|image|base|form|audio|video|source)\b", page, re.I)
    assert not re.search(r"\b(src|srcset|data|action|poster|background|on\w+)\s*=", page, re.I)
    assert not re.search(r"@import|@font-face|javascript:", page, re.I)
    assert all(u.startswith("#") for u in re.findall(r"(?:href|url)\s*[=(]\s*[\"']?([^\"')]+)", page))
    ids = re.findall(r"\bid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids)), "ids are unique across plots"
    assert {u[1:] for u in re.findall(r"(?:href=\"|url\()(#[^\")]+)", page)} <= set(ids)


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_plots_are_xml_and_complete(page):
    found = [s for s in svgs(page) if s.get("class") == "plot"]
    assert len(found) == 7 and all(s.get("aria-label") for s in found)
    assert "#010203" not in page and "var(--accent)" in page
    decode = next(s for s in found if s.get("aria-label").startswith("decode"))
    words = {t.text for t in decode.iter(f"{SVG}text")}
    assert {"74.6  1.20×", "62.1", "asked 70"} <= words


def test_the_strip_shows_every_sub_layer_once(page):
    strips = [s for s in svgs(page) if s.get("class", "").startswith(("strip wide", "strip narrow"))]
    assert len(strips) == 2
    for strip in strips:
        cells = [r.find(f"{SVG}title").text for r in strip.iter(f"{SVG}rect")]
        assert len(cells) == len(set(cells)) == 2 * L
        removed = {c.split()[0] for c in cells if c.endswith("removed")}
        assert removed == {"F10", "A11", "A20", "F20", "A21", "F21", "A22", "F22", "A23", "F23"}
        paths_ = [p.get("class") for p in strip.iter(f"{SVG}path")]
        assert paths_.count("seam") == 1 and paths_.count("joint") == 24


def test_every_length_has_both_units_and_every_kind_its_mark(page):
    assert "124 MB" in page and "118 MiB" in page
    for kind, mark in (("measured", "●"), ("predicted", "○"), ("prior", "△")):
        assert f'title="{kind}">{mark}</abbr>' in page


HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}$\\frac$|`[x](javascript:a)\x1b[31m\u202e\ufffe&amp;"


def test_hostile_strings_are_inert(tmp_path):
    files = [a | {"path": a["path"] + HOSTILE, "quant": HOSTILE, "format": HOSTILE} for a in artifacts()]
    times = [
        m | {"artifact": m["artifact"] + HOSTILE, "runtime": HOSTILE, "build": HOSTILE, "host": {HOSTILE: HOSTILE}}
        for m in measurements()
    ]
    quality = [q | {"subject": q["subject"] + HOSTILE, "text": TEXT | {"name": HOSTILE}} for q in qualities()]
    bad = plan(model=HOSTILE, quant=HOSTILE, runtime=HOSTILE, removed=HOSTILE, metric=HOSTILE)
    sums = {p + HOSTILE: v for p, v in predictions().items()}
    run = {"command": f"edgeprune ``` {HOSTILE}\n```", "environment": {HOSTILE: HOSTILE}, "created": HOSTILE}
    report = made(tmp_path, plan=bad, artifacts=files, measurements=times, quality=quality, predictions=sums, run=run)
    page, text = report_module.render_html(report), report_module.render_md(report)
    assert report.verdict[0].measured is not None, "the hostile file is still the planned one"
    assert not re.search(r"<(script|img)\b", page, re.I) and "49" not in re.findall(r"\{\{.*?\}\}", page)
    assert "alert(1)" in html.unescape(page), "shown, not hidden"
    for c in "\x1b\u202e\ufffe":
        assert c not in page and c not in text
    assert all(s is not None for s in svgs(page))
    fenced = re.search(r"^(`{3,})\n(.*?)\n\1$", text, re.S | re.M)
    outside = text.replace(fenced.group(0), "")
    assert len(fenced.group(1)) > 3 and "alert(1)" in fenced.group(2)
    assert not re.search(r"<\w|(?<!\\)\[x|(?<!\\)`", outside)
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in outside.split("\n") if row.startswith("| ")]
    assert widths and set(widths) <= {3, 5, 6, 8, 9, 10, 11}


# --- the files ----------------------------------------------------------------------------


def test_same_records_same_bytes(standard, page, tmp_path):
    again = made(tmp_path)
    assert again.to_json() == standard.to_json()
    assert report_module.render_html(again) == page
    assert report_module.render_md(again) == report_module.render_md(standard)


def test_the_files_tell_the_same(tmp_path):
    report = made(tmp_path)
    page, text, data, sheet = report_module.write(report, tmp_path / "report.html")
    assert [p.name for p in (page, text, data, sheet)] == ["report.html", "report.md", "report.json", "report.csv"]
    again = type(report).from_json(data.read_text())
    assert again == report and again.headline == report.headline
    shown = re.sub(r"<(style|svg).*?</\1>", "", page.read_text(), flags=re.S)
    shown = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown)))
    plain = text.read_text().replace("\\", "").replace("**", "")
    assert report.headline in shown and report.headline in plain
    assert shown.count("✓ met") == plain.count("✓ met") == 3
    numbers = re.findall(r"\d+\.\d+", plain)
    assert len(numbers) > 150 and not [n for n in numbers if n not in shown]
    for artifact in json.loads(data.read_text())["artifacts"]:
        assert artifact["sha256"] in shown and artifact["sha256"] in plain


def test_write_replaces_nothing_unasked(tmp_path):
    report = made(tmp_path)
    out = tmp_path / "report.html"
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        report_module.write(report, out)
    assert not out.exists() and (tmp_path / "report.md").read_text() == "mine"
    report_module.write(report, out, force=True)
    assert out.stat().st_size > 20_000 and not list(tmp_path.glob(".*partial*"))
    for name in ("plan.html", "report.txt"):
        with pytest.raises(UsageError):
            report_module.write(report, tmp_path / "run" / name, force=True)


def test_gains_are_ratios_within_a_repetition(tmp_path):
    """By hand: a machine that slows to a half midway. Medians say 1.0 or nonsense, every repetition says 1.25."""
    from edgeprune.report import facts
    from edgeprune.types import Measurement

    slow = [10, 10, 20, 20, 20]
    base = {"decode_samples_ns": [t * 10**8 for t in slow], "interleaved": True}
    ours = {"decode_samples_ns": [t * 8 * 10**7 for t in slow], "interleaved": True}
    first = measurements()[0]
    a, b = (Measurement.model_validate(first | change) for change in (ours, base))
    assert facts.gain(facts.decode_rates, a, b) == pytest.approx([1.25] * 5)
    apart = b.model_copy(
        update={"interleaved": False, "decode_samples_ns": tuple(t * 10**8 for t in (20, 20, 10, 10, 10))}
    )
    assert facts.gain(facts.decode_rates, a, apart) == pytest.approx([10 / (20 * 0.8)])
    assert facts.gain(facts.decode_rates, a, None) == []
