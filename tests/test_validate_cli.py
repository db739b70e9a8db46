"""The command line of `validate`: RUNS as before, sub-commands in its place, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest
from click.testing import CliRunner

from calibration.vendored import DIRECTORY
from validate import published
from validate.cli import SUBCOMMANDS, validate

MODULE = """
from validate.published.comparison import Comparison

TITLE = "The {name} paper"
ABOUT = 'Counts to {simulated}. It is made up.'


def compare():
    same = dict(unit="tok", source="table 1", setup="--samples 1")
    return [
        Comparison("single", "length", published=100.0, simulated={simulated}, tolerance=0.1, **same),
        Comparison("pdr", "width", published=8.0, simulated=9.0, tolerance=None, reason="only shown", **same),
    ]
"""


@pytest.fixture
def papers(tmp_path, monkeypatch):
    """Made-up comparisons in the place of the real ones: papers(name=simulated)."""

    def make(**simulated: float) -> None:
        for name, value in simulated.items():
            (tmp_path / f"{name}.py").write_text(MODULE.format(name=name, simulated=value))
            monkeypatch.delitem(sys.modules, f"validate.published.{name}", raising=False)
        (tmp_path / "helper.py").write_text("")  # compares nothing
        monkeypatch.delitem(sys.modules, "validate.published.helper", raising=False)

    import_module("validate.published.report")  # ours, which would not be found there
    monkeypatch.setattr(published, "__path__", [str(tmp_path)])
    yield make
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"validate.published.{path.stem}", None)
        if hasattr(published, path.stem):
            delattr(published, path.stem)


def run(*arguments: str):
    return CliRunner().invoke(validate, list(arguments))


def refused(result) -> str:
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("validate: error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("validate: error: ").strip()


def test_the_first_word_is_a_file_unless_it_names_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strategies").write_text((DIRECTORY / "smolhub.csv").read_text())
    found = run("./strategies", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["runs"] > 0
    behind = run("--json", "strategies").stdout  # behind an option it is RUNS
    assert behind == found.stdout.replace('"./strategies"', '"strategies"')
    assert "'strategie'" in refused(run("strategie"))  # a file that is not there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUNS'; see: validate --help"),
        (["a.csv", "b.csv"], "Got unexpected extra argument (b.csv); see: validate --help"),
        (["--jason", "a.csv"], "No such option '--jason'"),
        (["strategies", "--jason"], "see: validate strategies --help"),
        (["strategies", "--markdown", "x.md", "pdr"], "expected no NAME with it, found 'pdr'"),
    ],
)
def test_bad_use_is_one_sentence(arguments, message):
    assert message in refused(run(*arguments))


def test_help_shows_runs_and_commands():
    found = run("--help")
    assert found.exit_code == 0
    assert "Usage: validate [OPTIONS] [RUNS]\n" in found.stdout
    for words in ("--profile FILE", "--predictions OUT.csv", *SUBCOMMANDS):
        assert words in found.stdout
    assert "Usage: validate strategies [OPTIONS] [NAME]...\n" in run("strategies", "-h").stdout


def test_nothing_slow_is_imported_for_help():
    code = "import sys; from validate.cli import validate; validate(['strategies', '--help'], prog_name='validate')"
    heavy = "; import atexit; atexit.register(lambda: print([m for m in ('numpy', 'scipy') if m in sys.modules]))"
    found = subprocess.run(
        [sys.executable, "-c", code.replace("; from", heavy + "; from")], capture_output=True, text=True, check=True
    )
    assert found.stdout.rstrip().endswith("[]")


def test_met_figures_end_with_code_0_and_missed_ones_with_1(papers):
    papers(alpha=105.0)
    found = run("strategies")
    assert found.exit_code == 0, found.output
    assert "prediction: 1 figure with a target: 1 met, 0 missed (explained); bias +5.0 %" in found.stdout
    assert found.stdout.endswith("1 reported without a verdict\n")
    papers(beta=120.0)
    found = run("strategies")
    assert found.exit_code == 1 and "1 met, 0 missed (explained), 1 missed; bias +12.5 %" in found.stdout


def test_explained_misses_end_with_code_0(papers):
    papers(gamma='120.0, known_miss="made up"')
    found = run("strategies")
    assert found.exit_code == 0 and "0 met, 1 missed (explained); bias +20.0 %" in found.stdout


def test_tables_show_value_error_tolerance_and_verdict(papers):
    papers(alpha=105.0)
    lines = run("strategies", "alpha").stdout.splitlines()
    assert lines[0] == "alpha: The alpha paper"
    assert lines[1].split() == ["quantity", "unit", "published", "simulated", "error", "tolerance", "verdict"]
    assert lines[2].split() == ["length", "tok", "100", "105", "+5.0", "%", "10", "%", "met"]
    assert lines[3].split() == ["width", "tok", "8", "9", "+12.5", "%", "–", "reported"]


def test_names_are_papers_or_strategies(papers):
    papers(alpha=105.0, beta=120.0)
    assert [p["name"] for p in json.loads(run("strategies", "beta", "--json").stdout)["papers"]] == ["beta"]
    by_strategy = json.loads(run("strategies", "pdr", "--json").stdout)
    assert [(p["name"], len(p["comparisons"])) for p in by_strategy["papers"]] == [("alpha", 1), ("beta", 1)]
    alias = json.loads(run("strategies", "parallel-distill-refine", "--json").stdout)
    assert alias == by_strategy
    assert "unknown paper or strategy 'alpho'; nearest: alpha" in refused(run("strategies", "alpho"))


def test_a_strategy_without_figures_says_so(papers):
    papers(alpha=105.0)
    found = run("strategies", "self_consistency")
    assert found.exit_code == 0 and "no figure with a target" in found.stdout


def test_json_is_one_object(papers):
    papers(alpha=120.0)
    result = run("strategies", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    expected = {"judged": 1, "met": 0, "missed": 1, "missed_explained": 0, "reported": 1}
    assert found["summary"] | expected == found["summary"]
    first = found["papers"][0]["comparisons"][0]
    assert first["verdict"] == "missed" and first["error"] == pytest.approx(0.2)
    assert set(first) >= {"strategy", "quantity", "unit", "published", "simulated", "tolerance", "setup", "assumed"}


def test_the_page_is_written_although_a_figure_is_missed(papers, tmp_path):
    papers(alpha=120.0)
    page = tmp_path / "page.md"
    result = run("strategies", "--markdown", str(page))
    assert result.exit_code == 1 and f"validate: wrote {page}" in result.stderr
    assert "### The alpha paper" in page.read_text() and "**missed**" in page.read_text()
    assert "cannot be written" in refused(run("strategies", "--markdown", str(tmp_path / "none" / "page.md")))
