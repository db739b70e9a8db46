"""What a result says: numbers on screen against hand sums, valid JSON, pictures that show something."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.device import load_device
from simulator.errors import UserError
from simulator.pricing import price_of
from simulator.report import units
from simulator.report.gantt import DOTS_PER_INCH, PALETTE, SIZE_INCH, save_gantt
from simulator.report.json_out import result_json, rows_json, without_nan
from simulator.report.plain import bar, columns, render_plain
from simulator.report.table import build_report
from simulator.result import CallRecord, Flight, SimulationResult

LOG_SD = {"time": 0.1, "ttft": 0.2, "tpot": 0.1, "power": 0.1, "energy": 0.3}


def call(call_id: int, label: str, submitted: float, finished: float, parents=(), output: int = 101) -> CallRecord:
    """A call that waits 0.5 s, prefills 0.5 s and then decodes."""
    return CallRecord(call_id, label, submitted, submitted + 0.5, submitted + 1.0, finished, 1000, 400, output, parents)


def make_flight(calls: tuple[CallRecord, ...], seed: int = 0, power_w: float = 50.0) -> Flight:
    """A flight that lasts as long as its calls, at constant power."""
    wall = max(c.finished_s for c in calls)
    read, written = sum(c.prompt_tok for c in calls), sum(c.output_tok for c in calls)
    return Flight(
        seed=seed,
        wall_s=wall,
        energy_j=power_w * wall,
        critical_path_tok=202,
        read_tok=read,
        computed_tok=read - sum(c.cached_tok for c in calls),
        written_tok=written,
        b_seq_tok=2202,
        b_total_tok=read + written,
        peak_kv_tok=4000,
        peak_running=2,
        shares_s={"memory": 0.75 * wall, "compute": 0.25 * wall},
        calls=calls,
        power_times_s=np.array([0.0, wall]),
        power_w=np.array([power_w]),
        reread_tok=700,
    )


def make_result(flights: tuple[Flight, ...] | None = None, **changes) -> SimulationResult:
    """Two drafts and an answer, flown once, unless told otherwise."""
    if flights is None:
        flights = (make_flight((call(0, "draft", 0, 5), call(1, "draft", 0, 11), call(2, "answer", 11, 21, (0, 1)))),)
    facts = {
        "gpu": "box", "gpu_name": "Box 1", "power_mode": None, "model": "some/model", "parameters": 10**9,
        "precision": {"weights": "bf16", "activations": "bf16", "kv_cache": "bf16"}, "strategy": "two",
        "strategy_parameters": {"width": 2}, "interval_log_sd": LOG_SD, "seed": 7, "flights": flights, "version": "1",
        "calibration": {
            "id": "box.vllm", "title": "Box with vllm", "engine": "vllm", "status": "fitted", "source": "test bench",
            "data_hash": "ab" * 32, "power_scope": "board", "notes": [], "extrapolated": [], "variance_factor": 1.0,
        },
        "memory": {
            "capacity_byte": 20e9, "weights_byte": 2e9, "activation_byte": 0.5e9, "overhead_byte": 1e9,
            "kv_byte_per_tok": 1e5, "kv_capacity_tok": 100000,
        },
        "price": {"usd_per_hour": 3.6, "usd_per_kwh": 0.0, "basis": "rent $3.6/h"},
        "assumptions": ("nobody else uses the server",), "power": {"limit_w": 100.0, "idle_w": 10.0},
    }  # fmt: skip
    return SimulationResult(**{**facts, **changes})


# -- numbers on screen ---------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e9))
def test_three_significant_digits_are_kept(value):
    shown = float(units.significant(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.5e-2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.significant(9.996), "10.0"),
        (units.significant(0.0), "0"),
        (units.significant(math.nan), "-"),
        (units.seconds(0.0123), "12.3 ms"),
        (units.seconds(59.94), "59.9 s"),
        (units.seconds(1397.0), "23.3 min"),
        (units.seconds(9000.0), "2.50 h"),
        (units.milliseconds(1.5), "1,500 ms"),
        (units.gigabytes(68.7e9), "68.7 GB"),
        (units.joules(37_600.0), "37.6 kJ"),
        (units.watt_hours(3600.0), "1.00 Wh"),
        (units.dollars(math.nan), "not stated"),
        (units.parameters(494e6), "494 M"),
        (units.span(10.0, 20.0, units.seconds), "10.0 - 20.0 s"),
        (units.span(0.5, 20.0, units.seconds), "0.500 - 20.0 s"),
    ],
)
def test_units(text, expected):
    assert text == expected


@given(st.lists(st.lists(st.text("abc 1", max_size=9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_columns_start_at_the_same_place(rows):
    lines = columns([["|", *row] for row in rows] + [["|", "x", "y", "z"]])
    width = max(len(row[0]) for row in [*rows, ["x"]])
    assert all(line.startswith("|  ") or line == "|" for line in lines)
    assert lines[-1] == f"|  {'x'.ljust(width)}  {'y'.ljust(max(len(row[1]) for row in [*rows, ['', 'y']]))}  z"


@given(st.floats(0.0, 1.0))
def test_a_share_above_zero_has_a_bar(fraction):
    assert (len(bar(fraction)) > 0) == (fraction > 0)
    assert abs(len(bar(fraction)) - 40 * fraction) <= 1.0


def test_report_agrees_with_hand_sums():
    text = render_plain(build_report(make_result()))
    facts = dict(re.findall(r"^  ([A-Z][^\n]*?)  +(\S[^\n]*?)(?:  |$)", text, re.MULTILINE))
    assert facts["Wall time p50"] == "21.0 s"
    assert facts["Critical path"] == "202 tok"
    assert facts["Total written"] == "303 tok"
    assert facts["Total read"] == "3,000 tok"
    assert facts["Re-read"] == "700 tok"
    assert facts["B_seq"] == "2,202 tok"
    assert facts["B_total"] == "3,303 tok"
    assert facts["TTFT of the calls p50 / p90"] == "1.00 s / 1.00 s"
    # 4, 10 and 9 s of decoding over 100 tokens: median 90 ms, 90th percentile 90 + 0.8 * 10 ms.
    assert facts["TPOT of the calls p50 / p90"] == "90.0 ms / 98.0 ms"
    assert facts["Output rate"] == "14.4 tok/s"
    assert facts["Peak memory"] == "3.90 GB of 20.0 GB"  # 2 + 0.5 + 1 GB and 4,000 tokens of 100 kB
    assert facts["Average power"] == "50.0 W"
    assert facts["Energy p50"] == "1.05 kJ"
    assert facts["Energy per output token"] == "3.47 J"
    assert facts["Cost p50"] == "$0.0210"  # 21 s at 0.001 USD/s
    assert "weights 2.00 GB + KV 0.400 GB + other 1.50 GB" in text
    assert re.search(r"draft x2 +1,000 +400 +101 +500 ms +1.00 s +70.0 ms +8.00 s", text)
    low, high = 21 * math.exp(-0.1 * 1.644854), 21 * math.exp(0.1 * 1.644854)
    assert f"90 % interval {low:.1f} - {high:.1f} s" in text


def test_shares_are_sorted_and_sum_to_one():
    report = build_report(make_result())
    assert [cause for cause, _ in report.shares] == ["memory", "compute"]
    assert sum(fraction for _, fraction in report.shares) == pytest.approx(1.0)


def test_plain_text_has_no_escape_codes_and_no_trailing_blanks():
    text = render_plain(build_report(make_result()))
    assert text.isascii() and "\x1b" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_warnings_stand_under_the_headline():
    base = make_result()
    outside = {"extrapolated": ["context of 9 tokens; fitted up to 3"], "variance_factor": 2.0}
    text = render_plain(build_report(replace(base, calibration={**base.calibration, **outside})))
    assert text.index("context of 9 tokens") < text.index("Wall time p50")
    assert "WARNING" in text and "by convention" in text
    assert "WARNING" not in render_plain(build_report(base))


def test_power_of_a_rail_is_not_sold_as_the_board():
    base = make_result()
    text = render_plain(build_report(replace(base, calibration={**base.calibration, "power_scope": "gpu_soc_rail"})))
    assert "GPU and SoC rail, not of the whole board" in text


def test_terminal_report_holds_the_same_figures(capsys, monkeypatch):
    from simulator.report.terminal import print_report

    monkeypatch.setenv("COLUMNS", "200")
    report = build_report(make_result())
    print_report(report)
    shown = capsys.readouterr().out
    for section in report.sections:
        for name, value, _ in section.rows:
            assert re.search(rf"{re.escape(name)} +{re.escape(value)}", shown), name


# -- JSON ---------------------------------------------------------------------------------------------------------


def strict(text: str):
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_valid_and_agrees_with_the_flights():
    found = strict(result_json(make_result()))
    flight = found["flights"][0]
    assert found["summary"]["wall_s_p50"] == flight["wall_s"] == max(c["finished_s"] for c in flight["calls"])
    assert found["summary"]["written_tok_p50"] == sum(c["output_tok"] for c in flight["calls"])
    assert flight["energy_j"] == pytest.approx(np.dot(np.diff(flight["power_times_s"]), flight["power_w"]))
    assert sum(found["bottleneck_share"].values()) == pytest.approx(1.0)
    assert found["calibration"]["id"] == "box.vllm" and found["assumptions"]


def test_what_is_not_a_number_is_null():
    nowhere = {"usd_per_hour": math.nan, "usd_per_kwh": math.nan, "basis": "no price"}
    one_token = make_flight((call(0, "verdict", 0, 1, output=1),))
    found = strict(result_json(make_result((one_token,), price=nowhere)))
    assert found["summary"]["cost_usd_p50"] is None
    assert found["summary"]["tpot_s_p50"] is None
    assert "not stated" in render_plain(build_report(make_result((one_token,), price=nowhere)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values), max_size=3))
def test_rows_round_trip(rows):
    assert strict(rows_json(rows)) == without_nan(rows)


# -- money ---------------------------------------------------------------------------------------------------------


def test_rent_includes_electricity_unless_a_price_is_given():
    device = load_device("h100")
    rent, _ = price_of(device)
    assert rent["usd_per_hour"] == device.price.usd_per_hour and rent["usd_per_kwh"] == 0.0
    given_both, _ = price_of(device, usd_per_hour=2.0, usd_per_kwh=0.3)
    assert (given_both["usd_per_hour"], given_both["usd_per_kwh"]) == (2.0, 0.3)


def test_bought_devices_are_written_off_over_three_years():
    device = load_device("orin")
    price, notes = price_of(device)
    assert price["usd_per_hour"] * 3 * 8766 == pytest.approx(device.price.purchase_usd)
    assert price["usd_per_kwh"] == 0.15 and "assumed" in notes[0]


def test_no_price_is_said():
    import msgspec

    device = load_device("orin")
    device = msgspec.structs.replace(device, price=type(device.price)())
    price, _ = price_of(device)
    assert math.isnan(price["usd_per_hour"]) and "no price" in price["basis"]


# -- pictures ------------------------------------------------------------------------------------------------------


def test_critical_calls_go_back_over_the_last_parent():
    chain = make_result().flights[0].critical_calls()
    assert [c.call_id for c in chain] == [2, 1]


def pixels(path) -> np.ndarray:
    import matplotlib.image

    return matplotlib.image.imread(path)[..., :3]


def area(picture: np.ndarray, colour: str) -> int:
    """Pixels of (nearly) this colour."""
    from matplotlib.colors import to_rgb

    return int((np.abs(picture - np.array(to_rgb(colour))).max(axis=-1) < 0.02).sum())


def test_picture_shows_calls_in_proportion(tmp_path):
    path = save_gantt(make_result(), tmp_path / "flight.png")
    picture = pixels(path)
    assert picture.shape[:2] == (SIZE_INCH[1] * DOTS_PER_INCH, SIZE_INCH[0] * DOTS_PER_INCH)
    drafts, answer = area(picture, PALETTE[0]), area(picture, PALETTE[1])
    # Decoding lasts 4 and 10 s in the drafts and 9 s in the answer; outlines and the legend take a little.
    assert drafts / answer == pytest.approx(14 / 9, rel=0.1)


def test_picture_of_hundreds_of_calls(tmp_path):
    calls = tuple(call(i, "sample" if i < 200 else "judge", 0.01 * i, 5 + 0.02 * i) for i in range(300))
    picture = pixels(save_gantt(make_result((make_flight(calls),)), tmp_path / "many.png"))
    assert area(picture, PALETTE[0]) > 50_000 and area(picture, PALETTE[1]) > 20_000


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_same_result_gives_the_same_picture(tmp_path, suffix):
    first, second = (save_gantt(make_result(), tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("flight.gif", "'.gif'"), ("flight", "no suffix"), ("missing/f.png", "does not exist"), ("dir.png", "folder")],
)
def test_pictures_that_cannot_be_written(tmp_path, name, complaint):
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(UserError, match=complaint):
        save_gantt(make_result(), tmp_path / name)


def test_frame_has_a_row_per_call(monkeypatch):
    """pandas is an optional extra: here only what is handed to it is looked at."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    result = make_result()
    rows = result.to_frame()
    assert len(rows) == sum(len(flight.calls) for flight in result.flights)
    assert {"seed", "call_id", "label", "ttft_s", "tpot_s", "output_tok"} <= set(rows[0])
