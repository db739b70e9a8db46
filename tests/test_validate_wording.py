"""Figures in sentences carry the unit that fits them."""

from __future__ import annotations

import pytest

from calibration.records import METRICS
from validate.wording import counted, figure


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("tpot_s_mean", 0.04397, "43.97 ms"),
        ("ttft_s_median", 505.71, "505.7 s"),
        ("duration_s", 12740.4, "12,740 s"),
        ("output_tok_per_s", 12711.9, "12,710 tokens/s"),
        ("power_w", 5.714, "5.714 W"),
        ("energy_j_per_output_tok", 0.1815, "0.1815 J/token"),
        ("kv_capacity_tok", 392384.0, "392,400 tokens"),
        ("batch_mean", 16.0, "16 sequences"),
    ],
)
def test_values(metric, value, text):
    assert figure(metric, value) == text


@pytest.mark.parametrize("metric", METRICS)
def test_every_column_has_a_unit(metric):
    assert len(figure(metric, 2.0).split()) == 2


def test_one_and_many():
    assert (counted(1, "run"), counted(2430, "run")) == ("1 run", "2,430 runs")
