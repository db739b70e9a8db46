"""The ledger: statistics of hand-made numbers, rows shown apart, targets, stable text, figures."""

import json
import math

import pytest

from calibration import ledger, targets
from calibration.error_statistics import errors_of
from calibration.judged import Judged, family_of, family_order, repeats, split_apart
from calibration.records import RunRecord
from calibration.residual_plots import save_residuals
from calibration.targets import Target, Where

DENSE, MOE = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507"
_numbers = iter(range(10**6))


def judged(
    measured=1.0, in_sample=1.0, left_out=1.0, roofline=0.5, log_sd=0.1, metric="tpot_s_mean", flags=(), model=DENSE,
    source="lab", gpu="h100-sxm", **columns,
):  # fmt: skip
    values = {
        "run_id": f"run-{next(_numbers)}", "source": source, "gpu": gpu, "model": model, "load": "closed_loop",
        "concurrency": 8.0, "input_tok": 512.0, "output_tok": 512.0, "flags": ";".join(flags), metric: measured,
    }  # fmt: skip
    record = RunRecord(**(values | columns))
    return Judged(
        record, source, gpu, model, "vllm", metric, measured, in_sample, left_out, roofline, log_sd, tuple(flags)
    )


# -- one measurement ---------------------------------------------------------------------------------------------


def test_ratio_and_interval():
    row = judged(measured=2.0, left_out=2.2, log_sd=0.1)
    assert row.ratio == pytest.approx(1.1)
    assert row.interval == pytest.approx((2.2 / math.exp(0.16448536), 2.2 * math.exp(0.16448536)))
    assert row.inside and not judged(measured=2.0, left_out=2.4, log_sd=0.1).inside
    assert judged(measured=2.0, left_out=1.7, log_sd=0.1).inside  # symmetric in logarithms: 1/1.18
    nothing = judged(left_out=None)
    assert nothing.ratio is None and nothing.interval is None and nothing.inside is None


def test_what_a_run_was():
    row = judged(concurrency=None, num_requests=500, max_num_seqs=64, input_tok=300.0, output_tok=100.0)
    assert row.batch == 64 and row.context_tok == 400 and row.prompt_share == 0.75
    assert judged(batch_mean=7.5).batch == 7.5 and judged(concurrency=None).batch == 1
    assert judged(concurrency=None, num_requests=500, max_num_seqs=64, dp=2).batch == 128
    assert judged(model=MOE).moe and not row.moe
    assert row.parameters == pytest.approx(8.03e9, rel=0.01)


def test_families():
    assert family_of(judged(metric="ttft_s_median")) == "TTFT"
    assert family_of(judged(metric="ttft_s_median", ttft_s_mean=1.0)) == "TTFT median"
    assert family_of(judged(metric="itl_s_mean", itl_s_median=1.0)) == "ITL mean"
    assert family_of(judged(metric="itl_s_p99", itl_s_median=1.0)) == "ITL p99"
    assert family_of(judged(metric="output_tok_per_s")) == "throughput"
    assert family_of(judged(metric="power_w", flags=("whole_run_power",))) == "power, whole run"
    names = ["power, whole run", "ITL p99", "TPOT", "TTFT median", "something", "TTFT", "power", "energy per token"]
    ordered = ["TTFT", "TTFT median", "TPOT", "power", "power, whole run", "energy per token", "ITL p99", "something"]
    assert sorted(names, key=family_order) == ordered


def test_one_measurement_counts_once():
    assert repeats(judged(metric="total_tok_per_s", output_tok_per_s=1.0)) and not repeats(
        judged(metric="total_tok_per_s")
    )
    assert repeats(judged(metric="e2e_s_mean", output_tok=1.0, ttft_s_mean=1.0))
    assert not repeats(judged(metric="e2e_s_mean", output_tok=2.0, ttft_s_mean=1.0))
    assert repeats(judged(metric="duration_s", load="static_batch", e2e_s_mean=1.0))
    assert not repeats(judged(metric="duration_s", e2e_s_mean=1.0))
    clean, apart, repeated = split_apart([judged(metric="total_tok_per_s", output_tok_per_s=1.0), judged()])
    assert (len(clean), len(apart), repeated) == (1, 0, 1)


# -- groups ------------------------------------------------------------------------------------------------------


def test_statistics_of_hand_made_errors():
    errors = errors_of([(1.1, 1.0), (0.8, 1.0), (None, 1.0), (1.3, 1.0), (2.0, 2.0)])
    assert errors.n == 4
    assert errors.bias == pytest.approx((0.1 - 0.2 + 0.3) / 4)
    assert errors.mape == pytest.approx(0.15) and errors.median == pytest.approx(0.15)
    assert errors.p90 == pytest.approx(0.2 + 0.7 * 0.1)  # between the third and the fourth of four
    assert errors_of([(None, 1.0)]) is None and errors_of([]) is None


def test_rows_are_grouped_and_ordered():
    rows = ledger.ledger_rows(
        [
            judged(source="b", measured=1.0, in_sample=1.1, left_out=1.2, roofline=None),
            judged(source="a", model=MOE, left_out=None),
            judged(source="a", metric="power_w", roofline=None),
            judged(source="a", metric="ttft_s_mean", left_out=3.0),
            judged(source="a", metric="ttft_s_mean"),
        ]
    )
    keys = [(row.source, row.model, row.metric, row.n) for row in rows]
    assert keys == [("a", DENSE, "TTFT", 2), ("a", DENSE, "power", 1), ("a", MOE, "TPOT", 1), ("b", DENSE, "TPOT", 1)]
    last = rows[-1]
    assert last.in_sample.bias == pytest.approx(0.1) and last.left_out.bias == pytest.approx(0.2)
    assert last.roofline is None and last.coverage == 0.0 and rows[0].coverage == 0.5
    assert rows[2].left_out is None and rows[2].coverage is None and rows[2].roofline.bias == -0.5


def test_summary_parts_dense_models_from_mixtures():
    rows = ledger.summary_rows([judged(), judged(model="Qwen/Qwen3-8B"), judged(model=MOE)])
    assert [(row.model, row.n) for row in rows] == [("dense", 2), ("MoE", 1)]


def test_suspect_rows_are_apart_and_never_dropped():
    rows = [
        judged(),
        judged(left_out=9.0, flags=("suspect:odd", "derived:x")),
        judged(left_out=9.0, flags=("ambiguous:tp",)),
        judged(left_out=9.0, flags=("suspect:odd",)),
    ]
    assert [row.n for row in ledger.ledger_rows(rows)] == [1]
    assert [row.n for row in ledger.summary_rows(rows)] == [1]
    found = [(reason, row.n) for row, reason in ledger.suspect_rows(rows)]
    assert found == [("ambiguous:tp", 1), ("suspect:odd", 2)]
    text = ledger.markdown(rows, "", "c", "h")
    assert "`suspect:odd`" in text and "`ambiguous:tp`" in text
    assert ledger.coverage_by_regime(rows)["all"]["everywhere"] == (1, 1.0)


def test_coverage_by_regime():
    far = {"left_out": 3.0}
    rows = [judged(), judged(concurrency=64.0, **far), judged(concurrency=65.0, input_tok=1e5), judged(left_out=None)]
    rows += [judged(metric="ttft_s_mean", input_tok=10.0), judged(metric="batch_mean", **far)]
    table = ledger.coverage_by_regime(rows)
    assert list(table) == ["TTFT", "TPOT", "all"]
    assert table["TPOT"]["batch ≤ 8"] == (1, 1.0) and table["TPOT"]["9 to 64"] == (1, 0.0)
    assert table["TPOT"]["> 64"] == (1, 1.0) and table["TPOT"]["> 3/4"] == (1, 1.0)
    assert table["TTFT"] == {"batch ≤ 8": (1, 1.0), "prompt < 1/4": (1, 1.0), "everywhere": (1, 1.0)}
    assert table["all"]["everywhere"] == (4, 0.75)


# -- targets -----------------------------------------------------------------------------------------------------


def outcome(rows, **target):
    values = {"id": "t", "sentence": "s", "statistic": "median", "at_most": 0.1}
    return targets.outcomes(rows, [Target(**(values | target))])[0]


def test_targets_are_met_missed_or_without_data():
    rows = [judged(left_out=1.0 + error, in_sample=1.01) for error in (0.02, -0.05, 0.3)]
    found = outcome(rows)
    assert found.verdict == "met" and found.value == pytest.approx(0.05) and found.n == 3
    assert outcome(rows, statistic="mean").verdict == "missed"
    assert outcome(rows, statistic="mean", judged_on="in_sample").verdict == "met"
    assert outcome(rows, statistic="p90").value == pytest.approx(0.05 + 0.8 * 0.25)
    assert outcome([judged(left_out=0.8)], statistic="bias").verdict == "missed"
    for nothing in ([], [judged(left_out=None)], [judged(left_out=1.0, flags=("suspect:x",))]):
        assert (outcome(nothing).verdict, outcome(nothing).n) == ("no data", 0)


def test_a_target_can_be_judged_on_both():
    both = Target(id="t", sentence="s", statistic="mean", at_most=0.1, judged_on=("in_sample", "left_out"))
    found = targets.outcomes([judged(in_sample=1.05, left_out=1.5)], [both])
    assert [(one.judged_on, one.verdict) for one in found] == [("in_sample", "met"), ("left_out", "missed")]


def test_coverage_has_two_sides_and_sources_can_count_once():
    inside, outside = judged(), judged(left_out=3.0)
    bounds = {"statistic": "coverage", "at_least": 0.85, "at_most": 0.95}
    assert outcome([inside] * 9 + [outside], **bounds).verdict == "met"
    assert outcome([inside] * 10, **bounds).verdict == "missed"  # too wide is wrong as well
    assert outcome([inside] * 8 + [outside] * 2, **bounds).verdict == "missed"
    rows = [inside] * 9 + [judged(source="other", left_out=3.0)]
    assert outcome(rows, **(bounds | {"statistic": "coverage_by_source"})).value == pytest.approx(0.5)
    assert outcome([inside, judged(metric="batch_mean", left_out=9.0)], **bounds).n == 1


def test_selectors():
    row = judged(flags=("steady_window_power",), metric="power_w", input_tok=100.0)
    for yes in (
        Where(),
        Where(source="lab", gpu=("h100-sxm", "a6000"), engine_family="vllm", model=DENSE, metric=("power_w", "x")),
        Where(moe=False, load="closed_loop", flag="steady_window", input_tok=(100.0, 200.0)),
    ):
        assert yes.holds(row)
    for no in (
        Where(source="other"), Where(gpu="a6000"), Where(engine_family="vllm-v0"), Where(model=MOE), Where(moe=True),
        Where(metric="tpot_s_mean"), Where(load="burst"), Where(flag="whole"), Where(input_tok=(101.0, 200.0)),
    ):  # fmt: skip
        assert not no.holds(row)


def test_the_targets_that_ship():
    found = targets.read_targets()
    assert len({target.id for target in found}) == len(found) > 20
    assert {o.verdict for o in targets.outcomes([])} == {"no data"}
    dense = next(target for target in found if target.id == "mlenergy-dense-itl-median")
    row = judged(source="mlenergy", metric="itl_s_median", left_out=1.06)
    assert dense.where.holds(row) and targets.outcomes([row], [dense])[0].verdict == "missed"
    assert dense.limit() == "≤ 5 %" and found[-1].limit() == "85 to 95 %"


@pytest.mark.parametrize(
    "line",
    [
        'statistic = "mode"\nat_most = 1',
        'statistic = "mean"',
        'statistic = "mean"\nat_most = 1\njudged_on = "x"',
        'statistic = "coverage"\nat_most = 1\njudged_on = "in_sample"',
    ],
)
def test_a_wrong_target_is_refused(tmp_path, line):
    path = tmp_path / "targets.toml"
    path.write_text(f'[[target]]\nid = "t"\nsentence = "s"\n{line}\n')
    with pytest.raises(ValueError, match="target t"):
        targets.read_targets(path)


# -- text and figures --------------------------------------------------------------------------------------------


def some_rows():
    rows = [judged(left_out=1.0 + 0.012 * i, in_sample=1.0 + 0.006 * i, concurrency=2.0**i) for i in range(8)]
    rows += [judged(source="edge", gpu="orin-agx-64gb", metric="ttft_s_mean", left_out=None)]
    rows += [judged(model=MOE, metric="power_w", measured=500.0, in_sample=480.0, left_out=450.0, roofline=None)]
    return [*rows, judged(flags=("suspect:odd",)), judged(metric="total_tok_per_s", output_tok_per_s=1.0)]


def test_markdown_is_stable_and_complete():
    rows = some_rows()
    text = ledger.markdown(rows, "| operator |", "calibrate ledger", "Version 1.")
    assert text == ledger.markdown(rows[::-1], "| operator |", "calibrate ledger", "Version 1.")
    assert text.startswith("# Fidelity\n\nVersion 1.\n") and text.endswith("| operator |\n") and "\n\n\n" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Targets", "## Summary", "## Intervals by regime", "## Every model", "## Shown apart, not judged",
        "## Single operators",
    ]  # fmt: skip
    line = "| h100-sxm | Llama-3.1-8B-Instruct | TPOT | 8 | +2.1 % | 2.1 % | 2.1 % | 3.8 % | +4.2 % | 4.2 % | 4.2 % |"
    assert f"{line} 7.6 % | 50.0 % | 100 % |" in text
    assert "\n    calibrate ledger\n" in text and "1 columns repeat" in text
    assert "nan" not in text and "-0.0 %" not in text and "None" not in text
    for table in text.split("\n\n"):
        if table.startswith("| ") and table != "| operator |\n":
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_partly_left_out_groups_say_how_many():
    text = ledger.markdown([judged(), judged(left_out=None)], "", "c", "h")
    assert "| TPOT | 2/1 |" in text


def test_empty_input(tmp_path):
    text = ledger.markdown([], "", "calibrate ledger", "Nothing.")
    assert "No measurements." in text and "None judged." in text and "no data" in text
    assert json.loads(ledger.to_json([], "c", "h"))["rows"] == []
    assert ledger.ledger_rows([]) == ledger.summary_rows([]) == ledger.suspect_rows([]) == []
    assert save_residuals([], tmp_path / "plots") == [] and not (tmp_path / "plots").exists()


def test_json_holds_what_the_text_shows():
    found = json.loads(ledger.to_json(some_rows(), "calibrate ledger", "h"))
    assert found["repeated"] == 1 and [row["reason"] for row in found["apart"]] == ["suspect:odd"]
    assert {row["metric"] for row in found["rows"]} == {"TPOT", "TTFT", "power"}
    assert found["coverage"]["TPOT"]["everywhere"] == {"n": 8, "inside": 1.0}


def test_figures(tmp_path):
    rows = [*some_rows(), judged(left_out=99.0)]
    paths = save_residuals(rows, tmp_path / "plots")
    names = ["residuals_batch", "residuals_context", "residuals_size", "residuals_predicted", "predicted_measured"]
    assert [path.stem for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
