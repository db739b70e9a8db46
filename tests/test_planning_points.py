"""Points and what varies: settings under the names of options, outcomes, lists and ranges and grids."""

import math
from decimal import Decimal
from itertools import pairwise

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cli.main import simulate
from simulator.cli.options import OUTPUT
from simulator.cli.settings import options_of, read_value
from simulator.cli.traffic import traffic
from simulator.errors import UserError
from simulator.planning.points import FIGURES, SPREADS, WITH_INTERVAL, answer, read_settings, scenario_of
from simulator.planning.vary import MAX_POINTS, grid, parse_vary, read_points
from simulator.pricing import price_of
from simulator.scenario import prepare, simulate_scenario
from simulator.strategies.registry import COMMON

ORIN = {"gpu": "orin", "strategy": "pdr", "model": "qwen3-4b", "repetitions": 3}
LOAD = {"gpu": "h100", "model": "llama-3.1-8b", "input": 512, "output": 64, "requests": 100}


def test_an_outcome_is_the_result_of_the_same_scenario():
    outcome = answer({**ORIN, "width": 4})
    result = simulate_scenario(scenario_of({**ORIN, "width": 4}, "strategy")[0])
    told = result.summary()
    assert outcome.ok and outcome.reason == ""
    assert outcome.figures == {name: told[name] for name in outcome.figures}
    assert outcome.intervals["wall_s_p50"] == (told["wall_s_lo"], told["wall_s_hi"])
    assert outcome.intervals["energy_j_p50"] == (told["energy_j_lo"], told["energy_j_hi"])
    assert np.array_equal(outcome.per_repetition["wall_s"], result.values("wall_s"))
    assert np.median(outcome.per_repetition["cost_usd"]) == pytest.approx(told["cost_usd_p50"], rel=1e-12)
    assert outcome.calibration == result.calibration["id"] == outcome.facts["calibration"]["id"]
    assert outcome.facts["seed"] == 0 and outcome.facts["strategy_parameters"]["width"] == 4


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (ORIN, "strategy"),
        ({**ORIN, "questions": 2, "strategy": "hedged"}, "strategy"),
        ({**LOAD, "rate": 5, "goodput": "ttft:500 tpot:30"}, "traffic"),
        ({**LOAD, "concurrency": 4, "data_parallel_size": 2}, "traffic"),
    ],
)
def test_every_figure_is_in_the_list_and_in_its_interval(settings, kind):
    outcome = answer(settings, kind)
    assert set(outcome.figures) <= set(FIGURES[kind])
    assert set(outcome.intervals) <= WITH_INTERVAL[kind] <= set(FIGURES[kind])
    for name, (low, high) in outcome.intervals.items():
        value = outcome.figures[name]
        assert math.isnan(value) or low <= value <= high


def test_an_interval_of_cost_covers_time_and_energy():
    outcome = answer(ORIN)  # bought: its cost has both parts
    price, _ = price_of(prepare(scenario_of(ORIN, "strategy")[0]).device)
    wall, energy = (outcome.per_repetition[name] for name in ("wall_s", "energy_j"))
    for end in (0, 1):
        more = [outcome.intervals[n][end] / outcome.figures[n] for n in ("wall_s_p50", "energy_j_p50")]
        usd = wall * more[0] / 3600 * price["usd_per_hour"] + energy * more[1] / 3.6e6 * price["usd_per_kwh"]
        assert outcome.intervals["cost_usd_p50"][end] == pytest.approx(np.median(usd), rel=1e-12)


def test_points_of_one_seed_draw_the_same_lengths():
    slow, fast = (answer({**ORIN, "gpu": gpu}) for gpu in ("orin", "h100"))
    assert slow.figures["written_tok_p50"] == fast.figures["written_tok_p50"]
    assert (slow.per_repetition["wall_s"] > fast.per_repetition["wall_s"]).all()


def test_a_point_that_does_not_fit_is_an_outcome_or_an_error():
    big = {**ORIN, "model": "llama-3.1-70b"}
    outcome = answer(big, keep_going=True)
    assert outcome.status == "failed" and "does not fit" in outcome.reason and outcome.figures == {}
    with pytest.raises(UserError, match="does not fit"):
        answer(big)


def test_a_parameter_of_another_strategy_fails_and_an_unknown_name_is_an_error():
    assert "samples" in answer({**ORIN, "samples": 4}, keep_going=True).reason
    with pytest.raises(UserError, match="unknown setting 'wieghts'; nearest: weights"):
        answer({**ORIN, "wieghts": "int4"}, keep_going=True)
    with pytest.raises(UserError, match="unknown kind of simulation 'trafic'; nearest: traffic"):
        answer(LOAD, "trafic")


@pytest.mark.parametrize(
    ("settings", "kind", "match"),
    [
        ({**ORIN, "weights": "int5"}, "strategy", "int5"),
        ({**ORIN, "kv_cache": "fp8", "kv-cache-dtype": "fp8"}, "strategy", "'kv_cache_dtype' is given twice"),
        ({"strategy": "pdr"}, "strategy", "missing --gpu"),
        ({**LOAD, "rate": 1, "concurrency": 2}, "traffic", "contradict"),
        ({**LOAD, "rate": 0}, "traffic", "rate"),
        ({"gpu": "orin", "schedule": "no.json", "width": 3}, "strategy", "schedule"),
    ],
)
def test_bad_settings_are_one_sentence(settings, kind, match):
    with pytest.raises(UserError, match=match) as error:
        answer(settings, kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "command"), [("strategy", simulate), ("traffic", traffic)])
def test_settings_are_exactly_the_options_that_change_the_answer(kind, command):
    shown = {"goodput"}  # limits change figures
    wanted = {
        word.removeprefix("--").replace("-", "_")
        for each in command.params
        if isinstance(each, click.Option) and getattr(each, "group", OUTPUT) != OUTPUT and each.name != "settings"
        for word in each.opts
    }
    assert set(options_of(kind)) - shown == wanted


def test_settings_are_read_as_their_options_read_them():
    read = read_settings(
        {"gpu": "orin", "strategy": "pdr", "max-num-seqs": "1e1", "width": "8", "enforce_eager": "yes"}, "strategy"
    )
    assert read == {"gpu": "orin", "strategy": "pdr", "max_num_seqs": 10, "width": 8, "enforce_eager": True}
    scenario, _ = scenario_of({**ORIN, "enable_prefix_caching": False, "enforce_eager": False}, "strategy")
    assert scenario.engine_settings == {"enable_prefix_caching": False} and scenario.enforce_eager is False
    assert read_value("max_num_seqs", "8.0", "strategy") == 8
    _, limits = scenario_of({**LOAD, "num_prompts": None, "rate": 1, "goodput": "ttft:500 tpot:30"}, "traffic")
    assert (limits.ttft_s, limits.tpot_s) == (0.5, 0.03)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 50))
def test_a_range_is_python_s_with_its_end(low, more, step):
    name, values = parse_vary(f"width={low}..{low + more}:{step}")
    assert name == "width"
    assert [int(value) for value in values] == list(range(low, low + more + 1, step))


@given(st.integers(1, 50), st.integers(0, 10_000), st.integers(2, 10))
def test_a_geometric_range_multiplies_up_to_its_end(low, more, factor):
    _, values = parse_vary(f"rate={low}..{low + more}*{factor}")
    numbers = [int(value) for value in values]
    assert numbers[0] == low and numbers[-1] <= low + more < numbers[-1] * factor
    assert all(b == a * factor for a, b in pairwise(numbers))


@given(st.decimals(0, 100, places=2), st.integers(0, 200), st.decimals("0.01", 5, places=2))
def test_steps_of_decimals_do_not_drift(low, count, step):
    _, values = parse_vary(f"rate={low}..{low + count * step}:{step}")
    assert len(values) == count + 1
    assert all(Decimal(value) == low + i * step for i, value in enumerate(values))


def test_lists_keep_order_and_drop_repetitions():
    assert parse_vary("gpu=orin, l4,orin") == ("gpu", ("orin", "l4"))
    assert parse_vary("samples=1,2,1..3,8..32*2") == ("samples", ("1", "2", "3", "8", "16", "32"))
    assert parse_vary("rate=piecewise:60x2,60x10;4") == ("rate", ("piecewise:60x2,60x10", "4"))
    assert parse_vary("gpu=../a.toml,./b..toml") == ("gpu", ("../a.toml", "./b..toml"))


@pytest.mark.parametrize(
    "text",
    [
        "width",
        "=1",
        "width=",
        "width=1,,2",
        "width=5..1",
        "w=1..2:0",
        "w=1..9*1",
        "w=0..9*2",
        "w=0..1e9",
        "w=1..2:1e-30",
    ],
)
def test_bad_ranges_are_one_sentence(text):
    with pytest.raises(UserError, match=r"^--vary") as error:
        parse_vary(text)
    assert "\n" not in str(error.value)


def test_a_grid_is_every_combination_and_the_last_changes_fastest():
    points = grid({"a": "12", "b": "xy"}, [{"c": 1}, {"d": 2}])
    assert points[:3] == [{"c": 1, "a": "1", "b": "x"}, {"c": 1, "a": "1", "b": "y"}, {"c": 1, "a": "2", "b": "x"}]
    assert len(points) == 8 and points[-1] == {"d": 2, "a": "2", "b": "y"}
    with pytest.raises(UserError, match=f"more than {MAX_POINTS:,}"):
        grid({"a": range(10**4), "b": range(10**4)})
    with pytest.raises(UserError, match="a is varied by --vary and by --vary-list"):
        grid({"a": "12"}, [{"a": 1}])


def test_points_come_from_a_csv_file(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\ufeffgpu,width\norin,4\n\nl4,\n", encoding="utf-8")
    assert read_points(str(path)) == [{"gpu": "orin", "width": "4"}, {"gpu": "l4"}]
    for text, match in (("gpu,gpu\na,b\n", "repeated"), ("gpu\n", "a point"), ("gpu,w\na\n", "row 2"), ("", "a point")):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            read_points(str(path))
    path.write_bytes(b"gpu\n\xff\xfe\n")
    with pytest.raises(UserError, match="not a CSV file"):
        read_points(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_points(str(tmp_path / "none.csv"))


def test_spreads_are_of_known_figures():
    assert set(SPREADS) <= set(FIGURES["strategy"])
    assert COMMON[0].name not in options_of("strategy")  # it reaches strategies as a parameter
