"""What the first flight has to show: AGX Orin 64GB with vLLM 0.8.6, one profile, no constant per model."""

import numpy as np
import pytest

from calibration.records import read_records
from calibration.vendored import DIRECTORY
from simulator.model import load_model
from simulator.profile import read_profile
from simulator.profile_choice import profiles_directory
from validate.predict import Predictor

pytestmark = pytest.mark.slow
SMALL, LARGE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


@pytest.fixture(scope="module")
def predictions():
    records = read_records(DIRECTORY / "edgereasoning.csv")
    return [p for p in Predictor().predict_all(records) if not p.record.flagged("suspect:")]


def errors(predictions, metric, wanted):
    rows = [
        (p.values[metric][0], p.record.measured()[metric])
        for p in predictions
        if wanted(p.record) and metric in p.values
    ]
    predicted, measured = np.array(rows).T
    return np.abs(predicted / measured - 1.0)


def test_every_run_is_predicted(predictions):
    assert {p.status for p in predictions} == {"ok"}
    assert all(set(p.values) == set(p.record.measured()) for p in predictions)


@pytest.mark.parametrize(("model", "limit"), [(SMALL, 0.03), (LARGE, 0.05)])
def test_decode_time_per_token(predictions, model, limit):
    found = errors(predictions, "tpot_s_mean", lambda r: r.model == model and r.load == "static_batch")
    assert len(found) > 100 and found.mean() < limit


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_prefill_time(predictions, model):
    found = errors(predictions, "ttft_s_mean", lambda r: r.model == model and 129 <= r.input_tok <= 4097)
    assert len(found) > 30 and np.median(found) < 0.105


@pytest.mark.parametrize(("model", "largest"), [(SMALL, 32), (LARGE, 4)])
def test_parallel_sampling(predictions, model, largest):
    rows = [p for p in predictions if p.record.load == "parallel_sampling" and p.record.model == model]
    assert max(p.record.concurrency for p in rows) == largest
    assert errors(rows, "tpot_s_mean", lambda r: True).max() < 0.09


def test_steady_decode_power(predictions):
    found = errors(predictions, "power_w", lambda r: r.flagged("steady_window_power"))
    assert len(found) > 200 and found.mean() < 0.08 and np.percentile(found, 90) < 0.08


def test_stated_intervals_cover_what_they_state(predictions):
    """90 % intervals that cover nearly nothing or are absurdly wide would both be lies."""
    for metric in ("tpot_s_mean", "ttft_s_mean", "power_w"):
        rows = [
            (p.record.measured()[metric], *p.values[metric])
            for p in predictions
            if metric in p.values and not (metric == "power_w" and p.record.flagged("whole_run_power"))
        ]
        measured, value, low, high = np.array(rows).T
        assert ((low <= measured) & (measured <= high)).mean() >= 0.85, metric
        assert np.median(high / value) < 1.5, metric


def test_the_profile_names_no_model_and_knows_its_range():
    profile = read_profile(profiles_directory() / "orin-agx-64gb.vllm-0.8.toml")
    assert profile.fitted_on.rows == 370 and profile.fitted_on.max_batch == 32
    sizes = [load_model(name).parameters() for name in (SMALL, LARGE)]
    assert (profile.fitted_on.min_parameters, profile.fitted_on.max_parameters) == pytest.approx(sizes, rel=1e-3)
