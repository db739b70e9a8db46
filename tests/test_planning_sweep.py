"""Sweeps: the same rows wherever they run, tables that survive kills, points that fail, figures, the command."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cli.command import SUBCOMMANDS
from simulator.cli.main import simulate
from simulator.errors import UserError
from simulator.planning import sweep as module
from simulator.planning.backends import as_completed
from simulator.planning.points import answer
from simulator.planning.store import Store, cell, key, typed
from simulator.planning.sweep import build_sweep, run_sweep
from simulator.report.sweep_plot import _unit, choose_axes, save_sweep_figure

FIXED = {"strategy": "pdr", "model": "qwen3-4b", "repetitions": 2, "thinking_tok": 128, "answer_tok": 32}
AXES = {"gpu": ["orin", "h100"], "width": [1, 2, 4]}
ROOT = Path(__file__).parent.parent


def rows_of(sweep, path=None, **how):
    with Store(path, sweep.columns, sweep.names) as store:
        return run_sweep(sweep, store, **{"jobs": 1, **how})


@pytest.fixture
def small():
    return build_sweep("strategy", FIXED, AXES)


@pytest.fixture
def runs(monkeypatch):
    """How often each point was simulated, by its width and GPU."""
    seen = Counter()

    def counted(settings, kind, **how):
        seen[settings["gpu"], int(settings["width"])] += 1
        return answer(settings, kind, **how)

    monkeypatch.setattr(module, "answer", counted)
    return seen


@pytest.fixture
def command(monkeypatch, capsys):
    """`simulate sweep` with words: (exit code, stdout, stderr)."""
    monkeypatch.setitem(SUBCOMMANDS, "sweep", "simulator.cli.sweep")

    def run(*words):
        with pytest.raises(SystemExit) as done:
            simulate.main(["sweep", *map(str, words)], prog_name="simulate")
        return done.value.code, *capsys.readouterr()

    return run


OPTIONS = [word for name, value in FIXED.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_a_row_is_the_answer_to_its_settings(small):
    rows, _ = rows_of(small)
    assert [(row["gpu"], row["width"]) for row in rows] == [(g, str(w)) for g in AXES["gpu"] for w in AXES["width"]]
    outcome = answer({**FIXED, "gpu": "h100", "width": 4})
    row = rows[-1]
    assert all(float(row[name]) == value for name, value in outcome.figures.items())
    assert all((float(row[f"{n}_lo"]), float(row[f"{n}_hi"])) == ends for n, ends in outcome.intervals.items())
    assert (row["status"], row["calibration"], row["seed"]) == ("ok", outcome.calibration, "0")


def test_processes_and_one_process_write_the_same_bytes(small, tmp_path):
    for jobs in (1, 2):
        rows_of(small, str(tmp_path / f"{jobs}.csv"), jobs=jobs)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_traffic_sweeps_too():
    fixed = {"gpu": "h100", "model": "llama-3.1-8b", "input": 128, "output": 32, "requests": 60}
    rows, _ = rows_of(build_sweep("traffic", fixed, {"rate": [1, 4]}))
    assert float(rows[0]["requests_per_s"]) < float(rows[1]["requests_per_s"])
    assert "repetitions" not in rows[0] and rows[0]["seed"] == "0"


def test_points_that_fail_have_their_reason_and_the_others_go_on():
    sweep = build_sweep(
        "strategy", {**FIXED, "gpu": "orin", "width": 2, "model": "llama-3.1-70b"}, {"weights": ["fp32", "int4"]}
    )
    rows, tracebacks = rows_of(sweep)
    assert [row["status"] for row in rows] == ["failed", "ok"] and tracebacks == []
    assert "does not fit" in rows[0]["reason"] and rows[0]["wall_s_p50"] == ""


def test_an_error_of_ours_is_a_row_and_is_run_again(small, tmp_path, monkeypatch, runs):
    path, good = str(tmp_path / "t.csv"), module.answer

    def broken(settings, kind, **how):
        if settings["width"] == "2":
            raise TypeError("of ours,\nin two lines")
        return good(settings, kind, **how)

    monkeypatch.setattr(module, "answer", broken)
    rows, tracebacks = rows_of(small, path)
    assert [row["status"] for row in rows] == ["ok", "crashed", "ok"] * 2
    assert rows[1]["reason"].startswith("TypeError: of ours, in two lines (test_planning_sweep.py, line ")
    assert len(tracebacks) == 2 and "Traceback" in tracebacks[0]
    monkeypatch.setattr(module, "answer", good)
    runs.clear()
    rows, _ = rows_of(small, path)
    assert {row["status"] for row in rows} == {"ok"} and set(runs) == {("orin", 2), ("h100", 2)}


def test_only_missing_points_are_run(small, tmp_path, runs):
    path = tmp_path / "t.csv"
    rows_of(small, str(path))
    wider = build_sweep("strategy", FIXED, {"gpu": ["orin", "h100"], "width": [1, 2, 3, 4]})
    runs.clear()
    rows, _ = rows_of(wider, str(path))
    assert set(runs) == {("orin", 3), ("h100", 3)} and len(rows) == 8
    fresh = tmp_path / "fresh.csv"
    rows_of(wider, str(fresh))
    assert path.read_bytes() == fresh.read_bytes()
    runs.clear()
    narrow, _ = rows_of(build_sweep("strategy", {**FIXED, "gpu": "orin"}, {"width": [2]}), str(tmp_path / "n.csv"))
    kept, _ = rows_of(small, str(path))  # a narrower grid keeps what is there
    assert len(narrow) == 1 and len(kept) == 6 and path.read_bytes().count(b"\n") == 9


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_sweep_goes_on(small, tmp_path, runs, at):
    path, whole = tmp_path / "t.csv", tmp_path / "whole.csv"

    def stop(done, total):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows_of(small, str(path), progress=stop)
    assert path.read_bytes().count(b"\n") == 1 + at and path.read_bytes().endswith(b"\n")
    with path.open("ab") as file:
        file.write(b'orin,4,qwen3-4b,"torn')  # as a kill leaves it
    runs.clear()
    rows_of(small, str(path))
    assert sum(runs.values()) == 6 - at
    rows_of(small, str(whole))
    assert path.read_bytes() == whole.read_bytes()


def test_a_killed_sweep_goes_on(command, tmp_path):
    path, whole = tmp_path / "t.csv", tmp_path / "whole.csv"
    words = ["sweep", "--gpu", "orin", *OPTIONS, "--vary", "width=1..12", "--jobs", "1", "--out"]
    code = (
        "import sys; from simulator.cli.command import SUBCOMMANDS; SUBCOMMANDS['sweep'] = 'simulator.cli.sweep'; "
        "from simulator.cli.main import simulate; simulate.main(sys.argv[1:], prog_name='simulate')"
    )
    running = subprocess.Popen([sys.executable, "-c", code, *words, str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while running.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    done = subprocess.run([sys.executable, "-c", code, *words, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.endswith(f"wrote {path}\n")
    assert command(*words[1:], str(whole))[0] == 0
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"repetitions": 3}, "written with repetitions = 2, now it is 3"),
        ({"seed": 1}, "written with seed = 0, now it is 1"),
        ({"weights": "int4"}, "written without 'weights', which is set here"),
        ({"answer_tok": None}, "written with 'answer_tok', which is not set here"),
    ],
)
def test_other_options_are_refused_with_the_field(small, tmp_path, change, match):
    path = tmp_path / "t.csv"
    rows_of(small, str(path))
    before = path.read_bytes()
    fixed = {name: value for name, value in {**FIXED, **change}.items() if value is not None}
    with pytest.raises(UserError, match=match):
        rows_of(build_sweep("strategy", fixed, AXES), str(path))
    assert path.read_bytes() == before


def test_another_version_and_a_changed_file_are_refused(tmp_path, monkeypatch):
    mine, path = tmp_path / "mine.py", str(tmp_path / "t.csv")
    mine.write_text("def mine(run, width=4):\n    return (yield run.all(run.samples(width, run.problem, 'a', 64)))\n")
    fixed = {"gpu": "orin", "model": "qwen3-4b", "strategy": str(mine), "repetitions": 1}
    rows, _ = rows_of(build_sweep("strategy", fixed, {"width": [1]}), path)
    assert rows[0]["input_files"].startswith("mine.py:")
    mine.write_text(mine.read_text().replace("64", "65"))
    with pytest.raises(UserError, match=r"input_files = mine\.py:"):
        rows_of(build_sweep("strategy", fixed, {"width": [1, 2]}), path)
    mine.write_text(mine.read_text().replace("65", "64"))
    monkeypatch.setattr(module, "installed_version", lambda: "99.0")
    with pytest.raises(UserError, match=r"version = .*, now it is 99\.0"):
        rows_of(build_sweep("strategy", fixed, {"width": [1, 2]}), path)


def test_tables_that_are_none_and_tables_in_use_are_refused(small, tmp_path):
    path = tmp_path / "t.csv"
    for text in ("a,b\n1,2\n", "no line"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not the table of a sweep"):
            rows_of(small, str(path))
        assert path.read_text() == text
    path.unlink()
    with Store(str(path), small.columns, small.names), pytest.raises(UserError, match="written by another sweep"):
        rows_of(small, str(path))
    path.write_text(",".join(small.columns) + "\nshort,row\n")
    with pytest.raises(UserError, match=r"row 2: found 2 cells"):
        rows_of(small, str(path))


@pytest.mark.parametrize(
    ("fixed", "axes", "match"),
    [
        ({}, {"wdith": [1]}, "unknown setting 'wdith'; nearest: width"),
        ({}, {"gpu": ["h1000"]}, "unknown GPU 'h1000'"),
        ({"gpu": "orin"}, {"strategy": ["pdr", "pbr"]}, "unknown strategy 'pbr'"),
        ({"gpu": "orin", "width": 2}, {"width": [1]}, "'width' is fixed and varied"),
        ({"gpu": "orin"}, {"width": ["many"]}, "found 'many'"),
        ({"gpu": "orin"}, {"samples": [1]}, "unknown parameter 'samples' of strategy 'pdr'"),
        ({"gpu": "orin"}, {"max_num_seqs": ["few"]}, "max_num_seqs: found 'few'"),
        ({}, {"width": [1]}, "missing --gpu"),
        ({"gpu": "orin"}, {"kv_cache": ["fp8"], "kv-cache-dtype": ["auto"]}, "given twice"),
    ],
)
def test_mistakes_are_told_before_anything_runs(fixed, axes, match):
    with pytest.raises(UserError, match=match):
        build_sweep("strategy", {"strategy": "pdr", **fixed} if "strategy" not in axes else fixed, axes)


def test_strategies_with_different_parameters_share_a_sweep():
    fixed = {"gpu": "orin", "model": "qwen3-4b", "repetitions": 1, "answer_tok": 32, "thinking_tok": 64}
    listed = [{"strategy": "pdr", "width": "2"}, {"strategy": "self_consistency", "samples": "3"}]
    rows, _ = rows_of(build_sweep("strategy", fixed, {}, listed))
    assert [(row["strategy"], row["width"], row["samples"]) for row in rows] == [
        ("pdr", "2", ""), ("self_consistency", "", "3"),
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}


def test_equal_points_are_one():
    assert len(build_sweep("strategy", {"gpu": "orin", "strategy": "pdr"}, {"width": ["8", "08", 8]}).points) == 1


@given(st.one_of(st.floats(allow_nan=False), st.integers(), st.booleans(), st.text(max_size=20)))
def test_cells_read_back_as_they_were(value):
    text = cell(value)
    assert "\n" not in text
    if isinstance(value, bool):
        assert typed([text]) == [value]
    elif not isinstance(value, str):
        assert key({"a": text}, ["a"]) == (float(value),)


def test_columns_are_numbers_only_if_all_of_them_are():
    assert typed(["1", "", "2"]) == [1, None, 2]
    assert typed(["1", "0.5"]) == [1.0, 0.5]
    assert typed(["true", "false"]) == [True, False]
    assert typed(["1", "x", ""]) == ["1", "x", None]


@pytest.mark.parametrize(
    ("backend", "modules"), [("dask", ["distributed"]), ("ray", ["ray", "ray.util", "ray.util.joblib"])]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, backend, modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"backend {backend} needs the package .*tokenflight\[{backend}\]"):
        list(as_completed(abs, [1], backend))


def test_back_ends_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="expected one of loky, dask, ray"):
        list(as_completed(abs, [1], "spark"))
    with pytest.raises(UserError, match="address is that of a Dask or Ray cluster"):
        list(as_completed(abs, [1], "loky", address="tcp://host:1"))
    assert sorted(as_completed(abs, [-3, 2], jobs=1)) == [2, 3] and list(as_completed(abs, [])) == []


def test_parquet_without_its_package_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pyarrow: pip install 'tokenflight\[parquet\]'"):
        rows_of(small, str(tmp_path / "t.parquet"))


def test_axes_are_what_varies():
    sweep = build_sweep("strategy", FIXED, {**AXES, "weights": ["bf16", "int4"]})
    assert choose_axes(sweep) == choose_axes(sweep, "width", ["wall_s_p50"], "gpu")
    assert choose_axes(sweep).others == ("weights",)
    assert choose_axes(sweep, "gpu", by="weights").others == ("width",)
    for how, match in (
        ({"x": "wide"}, "unknown setting 'wide' of --x"),
        ({"by": "seed"}, "unknown setting 'seed' of --by"),
        ({"y": ["wall_p50"]}, "unknown figure 'wall_p50' of --y; nearest: wall_s_p50"),
        ({"x": "gpu", "by": "gpu"}, "both show 'gpu'"),
    ):
        with pytest.raises(UserError, match=match):
            choose_axes(sweep, **how)


@pytest.mark.parametrize(
    ("figure", "unit"),
    [
        ("wall_s_p50", "s"), ("energy_j_per_output_tok", "J/tok"), ("output_tok_per_s", "tok/s"),
        ("peak_memory_byte", "GB"), ("mean_power_w", "W"), ("usd_per_million_output_tok", "USD/Mtok"),
        ("cost_usd_p50", "USD"), ("requests_per_s", "requests/s"), ("batch_mean", ""),
        ("energy_j_per_request", "J/request"),
    ],
)  # fmt: skip
def test_units_come_from_names(figure, unit):
    assert _unit(figure)[0] == unit


def test_a_figure_shows_lines_bands_and_lost_points(tmp_path):
    from matplotlib.figure import Figure

    from simulator.report.sweep_plot import draw_sweep

    sweep = build_sweep("strategy", {**FIXED, "max_model_len": 2048}, {"gpu": ["orin", "h100"], "width": [1, 2, 16]})
    rows, _ = rows_of(sweep)
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"] * 2
    axes = choose_axes(sweep, y=["wall_s_p50", "energy_j_p50"])
    figure = Figure(layout="constrained")
    draw_sweep(rows, sweep, axes, figure)
    lines = [line for line in figure.axes[0].get_lines() if line.get_gid() != "lost"]
    assert [line.get_label() for line in lines] == ["orin", "h100"]
    assert lines[0].get_ydata()[:2].tolist() == [float(row["wall_s_p50"]) for row in rows[:2]]
    crosses = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_gid() == "lost"]
    assert [list(x) for x in crosses] == [[16.0], [16.0]]
    paths = [save_sweep_figure(rows, sweep, axes, tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_command_writes_table_and_figure_and_goes_on(command, tmp_path):
    table, figure = tmp_path / "t.csv", tmp_path / "f.svg"
    words = [*OPTIONS, "--vary", "gpu=orin,h100", "--vary", "width=1..4*2", "--jobs", 1, "--out", table]
    assert command(*words) == (0, "", f"simulate: wrote {table}\n")
    first = table.read_bytes()
    code, out, err = command(*words, "--plot", figure, "--y", "energy_j_p50", "--by", "gpu")
    assert (code, out) == (0, "") and str(figure) in err and "energy_j_p50" in figure.read_text()
    assert table.read_bytes() == first and len(list(csv.DictReader(io.StringIO(first.decode())))) == 6


def test_the_command_says_what_failed_and_ends_with_one(command, tmp_path):
    code, out, err = command(*OPTIONS, "--vary", "gpu=orin", "--vary", "max_model_len=300,4096", "--jobs", 1)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and [row["status"] for row in rows] == ["failed", "ok"]
    assert err.startswith("simulate: 1 of 2 points failed:\n  1 x ")


def test_the_command_takes_lists_sets_and_json(command, tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("gpu,width\norin,1\nh100,2\n")
    words = [word for word in OPTIONS if word not in ("--answer-tok", "32")]
    code, out, _ = command(*words, "--set", "answer_tok=32", "--vary-list", points, "--json", "--jobs", 1)
    found = json.loads(out)
    assert code == 0 and found["kind"] == "strategy" and found["fixed"]["answer_tok"] == "32"
    assert [(row["gpu"], row["width"]) for row in found["rows"]] == [("orin", 1), ("h100", 2)]
    assert found["rows"][0]["wall_s_p50"] > found["rows"][1]["wall_s_p50"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--vary", "width=1..2", "--vary", "width=3"], "--vary width is given twice"),
        (["--vary", "gpu=orin", "--out", "t.txt"], "ending in .csv or .parquet"),
        (["--vary", "gpu=orin", "--x", "gpu"], "--x says what --plot shows"),
        (["--vary", "gpu=orin", "--json", "--out", "t.csv"], "both say where the rows go"),
        (["--vary", "gpu=orin", "--plot", "a.png", "--out", "no/t.csv"], "does not exist"),
        (["--vary", "gpu=orin", "--set", "width"], "expected NAME=VALUE"),
        (["--vary", "gpu=orin", "--address", "x"], "expected backend dask or ray"),
        (["--vary", "gpu=orin", "--rate", "3"], "No such option"),
        (["--traffic", "--vary", "gpu=orin", "--width", "3"], "No such option"),
        (["--vary", "gpu=orin", "--backend", "spark"], "spark"),
    ],
)
def test_the_command_tells_mistakes_in_one_sentence(command, words, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("--strategy", "pdr", *words) if "--traffic" not in words else command(*words)
    assert code == 2 and out == "" and match in err and err.count("\n") == 1


def test_help_and_nothing_at_all(command):
    assert "simulate sweep" in command()[1]
    code, out, _ = command("--help")
    assert code == 0 and "--vary NAME=VALUES" in out and "--backend [loky|dask|ray]" in out and "--weights" not in out


def test_the_example_of_precisions(tmp_path):
    path = ROOT / "examples" / "precisions.py"
    assert len(path.read_text().splitlines()) < 60
    figure = tmp_path / "precisions.png"
    done = subprocess.run([sys.executable, path, figure], capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert done.stderr == "" and len(lines) == 18 and figure.read_bytes().startswith(b"\x89PNG")
    one, full = (dict(zip(("w8a8", "w4a16"), map(float, re.findall(r"([\d.]+) times", line)))) for line in lines[-2:])
    assert one["w4a16"] > one["w8a8"] > 1.2  # alone, bytes of weights decide
    assert full["w8a8"] > 1.1 > full["w4a16"]  # together, arithmetic does
