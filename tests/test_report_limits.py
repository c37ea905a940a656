"""File size and quality, where they were limits, have their lines in the report's verdict."""

from __future__ import annotations

import _report_records as records
import pytest

from edgeprune import report as reporting


@pytest.mark.slow
@pytest.mark.parametrize(("most", "verdict"), [((200_000_000, 9.0, 9.0), "met"), ((1000, 0.001, 1.01), "missed")])
def test_limits_on_file_and_quality_are_judged_by_the_finished_file(tmp_path, most, verdict):
    asked = dict(zip(("max_file_bytes", "max_kl", "max_ppl_ratio"), most, strict=True))
    planned = records.plan(budget={**records.plan()["budget"], **asked})
    made = reporting.build(records.run_folder(tmp_path, plan=planned))
    lines = {line.line: line for line in made.verdict}
    assert {lines[name].verdict for name in ("file size", "damage", "perplexity")} == {verdict}
    assert lines["perplexity"].measured == pytest.approx(68.2 / 26.18) and lines["damage"].measured == 0.97
    text = reporting.render_md(made)
    assert "file size 124 MB" in text and "perplexity" in text
    html = reporting.render_html(made)
    assert "Against the whole, unquantised model" in html and "512-token prompt" in html
