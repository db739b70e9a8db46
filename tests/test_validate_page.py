"""What people see of a verdict: summary, text, page, exit codes."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import msgspec
import pytest
from click.testing import CliRunner
from suite_cases import predicted, run

from calibration.collect.to_records import csv_bytes
from calibration.records import read_records
from calibration.vendored import DIRECTORY
from validate.cli import validate
from validate.finding import Finding
from validate.page import write_page
from validate.report import text
from validate.suite import Verdict, run_checks
from validate.summary import summary

ROWS = [r for r in read_records(DIRECTORY / "edgereasoning.csv") if r.ttft_s_mean and r.concurrency == 1][:90]
CLEAN = [r for r in ROWS if not r.flagged("suspect:")]


def written(tmp_path, records):
    path = tmp_path / "runs.csv"
    path.write_bytes(csv_bytes(records))
    return path


def called(*arguments):
    return CliRunner().invoke(validate, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def verdict():
    return run_checks(predicted(ROWS))


def refuse(verdict, runs, metrics=()):
    one = Finding(
        check="bounds.time_floor", layer="bounds", fault="F3", severity="fail", confidence="certain", runs=runs,
        metrics=metrics, says="too fast", evidence={"measured_s": 1.0},
    )  # fmt: skip
    return Verdict(verdict.evidence, (one,))


def test_refused_figures_are_in_no_error_and_the_others_are(verdict):
    free = Verdict(verdict.evidence, ())
    case = next(c for c in verdict.evidence.cases if "power_w" not in c.measured and c.record.output_tok == 1)
    refused = refuse(free, (case.id,), ("ttft_s_mean",))
    assert refused.status(case) == "refused: F3" and free.status(case) in ("ok", "extrapolated")

    def judged(verdict):
        return {(r["group"], r["metric"]): r["n"] for r in summary(verdict)["errors"]}

    before, after = judged(free), judged(refused)
    gone = {key: n - after.get(key, 0) for key, n in before.items() if n != after.get(key, 0)}
    assert [(metric, n) for (_, metric), n in gone.items()] == [("ttft_s_mean", 1)]
    assert summary(refused)["refused_figures"] == 1


def test_a_refusal_of_the_whole_run_takes_all_its_figures(verdict):
    case = next(c for c in verdict.evidence.cases if len(c.prediction.values) > 1)
    assert summary(refuse(verdict, (case.id,)))["refused_figures"] == len(case.prediction.values)


def test_warnings_and_notes_refuse_nothing(verdict):
    (one,) = refuse(verdict, (verdict.evidence.cases[0].id,)).findings
    for severity in ("warn", "note"):
        mild = Verdict(verdict.evidence, (replace(one, severity=severity),))
        assert mild.status(verdict.evidence.cases[0]) in ("ok", "extrapolated")
        assert bool(mild.alarms) is (severity == "warn")


def test_the_verdict_in_a_word(verdict):
    free = Verdict(verdict.evidence, ())
    assert summary(free)["verdict"]["word"] == "consistent"
    found = summary(refuse(verdict, ("a", "b")))["verdict"]
    assert found["word"] == "mismatch suspected" and "F3 physically impossible (2)" in found["says"]
    nothing = replace(verdict.evidence, cases=[])
    assert summary(Verdict(nothing, ()))["verdict"]["word"] == "unverifiable"


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_needs_no_other_file_and_says_what_the_markdown_says(verdict, tmp_path):
    html, markdown = write_page(tmp_path / "r", verdict, summary(verdict))
    page = _Page()
    page.feed(html.read_text())
    assert page.sources and all(source.startswith(("data:image/png", "https://")) for source in page.sources)
    assert "script" not in page.tags and {"table", "h2", "blockquote", "img"} <= set(page.tags)
    said = markdown.read_text()
    for finding in verdict.findings:
        assert finding.fault in said
    figures = re.findall(r"!\[\w+\]\((figures/[\w.]+)\)", said)
    assert {"figures/predicted_measured.png", "figures/residuals.png", "figures/regimes.png"} <= set(figures)
    for figure in figures:
        assert matplotlib.image.imread(tmp_path / "r" / figure)[..., :3].std() > 0.05  # something is drawn


def test_names_from_a_file_cannot_break_the_page(tmp_path):
    wicked = "<script>alert(1)</script>`|*[x](javascript:y)"
    record = msgspec.structs.replace(run(), run_id=wicked, source=wicked[:40], model=run().model)
    found = run_checks(predicted([record]))
    bad = Verdict(found.evidence, (*found.findings, *refuse(found, (wicked,)).findings))
    html, _ = write_page(tmp_path, bad, summary(bad))
    page = _Page()
    page.feed(html.read_text())
    assert "script" not in page.tags and not any("javascript" in source for source in page.sources)


def test_text_tells_findings_first(verdict):
    lines = text(summary(refuse(verdict, (verdict.evidence.cases[0].id,)))).splitlines()
    assert lines[2].startswith("mismatch suspected: 1 finding about 1 of")
    assert any(
        line.startswith("F3 physically impossible · fail · certain · bounds.time_floor · 1 run") for line in lines
    )


def test_exit_codes_files_and_json(tmp_path):
    clean = written(tmp_path, CLEAN[10:14])
    found = called(clean, "--json", "--predictions", tmp_path / "p.csv")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["verdict"]["word"] == "consistent"
    impossible = msgspec.structs.replace(CLEAN[10], ttft_s_mean=1e-6, e2e_s_mean=1e-6)
    bad = written(tmp_path, [impossible, *CLEAN[11:14]])
    found = called(bad, "--predictions", tmp_path / "p.csv", "--report", tmp_path / "page")
    assert found.exit_code == 1 and (tmp_path / "page" / "report.html").is_file()
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert rows[0]["status"].startswith("refused: F") and float(rows[0]["ttft_s_mean"]) > 0
    assert "F3 physically impossible" in found.stdout
    assert {r["status"] for r in rows[1:]} <= {"ok", "extrapolated"}


def test_the_run_file_is_never_overwritten(tmp_path):
    path = written(tmp_path, ROWS[:2])
    before = path.read_bytes()
    found = called(path, "--predictions", path)
    assert found.exit_code == 2 and "this is also the file of RUNS" in found.stderr and path.read_bytes() == before


def test_another_simulators_figures(tmp_path):
    path = written(tmp_path, ROWS[40:48])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    halved = written(
        theirs, [msgspec.structs.replace(r, ttft_s_mean=2.1 * r.ttft_s_mean, e2e_s_mean=None) for r in ROWS[40:48]]
    )
    found = called(path, "--simulated", halved, "--json")
    assert found.exit_code == 1
    assert "F2" in {f["fault"] for f in json.loads(found.stdout)["findings"]}
    stray = written(theirs, [msgspec.structs.replace(ROWS[0], run_id="other")])
    assert called(path, "--simulated", stray).exit_code == 2
