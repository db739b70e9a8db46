"""Run files that are broken in any way: one sentence with file and place, never a traceback, never a silent skip."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibration.records import COLUMNS, METRICS, read_records
from simulator.errors import UserError
from validate.predict import Predictor

ROW = {
    "run_id": "a", "source": "me", "gpu": "h100-sxm", "model": "meta-llama/Llama-3.1-8B-Instruct",
    "weight_dtype": "bf16", "engine": "vllm", "engine_version": "0.11.0", "load": "closed_loop", "concurrency": "4",
    "num_requests": "20", "input_tok": "200", "output_tok": "50", "ttft_s_mean": "0.02", "tpot_s_mean": "0.008",
    "output_tok_per_s": "450", "power_w": "500", "prefix_caching": "false", "flags": "x;y",
}  # fmt: skip
WORDS = (
    "", " ", "nan", "inf", "-inf", "1e999", "-1", "0", "1e-320", "true", "vllm", "fp8", "\u2028", "\x00", "NaN", "١",
    "9" * 400, '"', ",", "\n", "uniform:0.5", "uniform:2", "dataset:x", "300W", "turbo", "open_loop", "burst", "../x",
    "x.toml", "1/0", "0x10", "1_0", "None", "[]", "{}",
)  # fmt: skip
SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_csv(rows, header=tuple(ROW)):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    for row in rows:
        writer.writerow([row.get(name, "") for name in header])
    return out.getvalue()


def read_or_refuse(path):
    """Records, or None after a complaint of one line that names the file."""
    try:
        return read_records(path)
    except UserError as error:
        said = str(error)
        assert "\n" not in said and str(path) in said and len(said) < 700, said
        return None


@SOME
@given(changes=st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(WORDS) | st.text(max_size=30), max_size=4))
@example(changes={"output_tok": "0.5"})
@example(changes={"concurrency": "1e9"})
@example(changes={"engine_version": "x" * 400})
def test_any_cells(tmp_path, changes):
    path = tmp_path / "runs.csv"
    header = tuple(dict.fromkeys((*ROW, *changes)))
    path.write_text(as_csv([ROW, ROW | {"run_id": "b"} | changes], header), encoding="utf-8", newline="")
    records = read_or_refuse(path)
    if records is not None:
        assert len(records) == 2
        found = Predictor().predict_all(records)
        assert found[0].status in ("ok", "extrapolated")
        assert found[1].status.partition(":")[0] in ("ok", "extrapolated", "unsupported")
        for value, low, high in found[1].values.values():
            assert 0 < low <= value <= high < float("inf")


@SOME
@given(data=st.data())
def test_any_damage_to_the_bytes(tmp_path, data):
    content = bytearray(as_csv([ROW, ROW | {"run_id": "b"}]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("replace", "insert", "delete", "cut")))
        if kind == "replace":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=3))
        elif kind == "delete":
            del content[at : at + data.draw(st.integers(1, 9))]
        else:
            del content[at:]
        if not content:
            break
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    read_or_refuse(path)


@SOME
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(dict(ROW)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json(tmp_path, value):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(value))
    records = read_or_refuse(path)
    if records is not None:
        assert isinstance(value, list) and len(records) == len(value)


@pytest.mark.parametrize("column", ["run_id", "gpu", "tpot_s_mean", "flags", "length_spread", "engine"])
def test_a_cell_of_a_million_characters(tmp_path, column):
    path = tmp_path / "runs.csv"
    path.write_text(as_csv([ROW | {column: "7" * 10**6}], tuple(dict.fromkeys((*ROW, column)))))
    with pytest.raises(UserError) as error:
        read_records(path)
    assert f"column {column}" in str(error.value) and "line 2" in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_no_metric_may_be_nothing_or_endless(tmp_path, metric, value):
    path = tmp_path / "runs.csv"
    path.write_text(as_csv([ROW | {metric: value}], tuple(dict.fromkeys((*ROW, metric)))))
    with pytest.raises(UserError, match=f"line 2, column {metric}"):
        read_records(path)
