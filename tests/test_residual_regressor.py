"""The learnt correction: found to help where errors follow a trend, and not where they do not."""

from types import SimpleNamespace

import numpy as np
import pytest

from calibration.family_fit import Prediction
from calibration.records import RunRecord
from calibration.residual_regressor import (
    FEATURES,
    ResidualRegressor,
    features,
    judge_regressor,
    left_out_corrections,
    residuals_of,
    verdict,
)
from calibration.setup import resolve

MODELS = (
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "microsoft/phi-2", "openai/gpt-oss-20b",
)  # fmt: skip
METRICS = ("ttft_s_mean", "tpot_s_mean", "output_tok_per_s")


def run(model, batch, prompt):
    return resolve(RunRecord(
        run_id=f"{model}-{batch}-{prompt}", source="made", gpu="h100-sxm", model=model, engine="vllm",
        engine_version="0.11.0", load="closed_loop", concurrency=batch, num_requests=4 * batch, input_tok=prompt,
        output_tok=200, ttft_s_mean=1.0,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def setups():
    return [run(model, batch, prompt) for model in MODELS for batch in (1, 4, 16, 64) for prompt in (128, 1024)]


def predictions(setups, log_ratio, metrics=METRICS):
    """Left-out predictions whose times are off by log_ratio(setup): log(measured / predicted)."""
    out = []
    for setup in setups:
        for metric in metrics:
            rate = metric == "output_tok_per_s"
            predicted = 1e-12 * setup.model.parameters() * (setup.input_tok if metric.startswith("ttft") else 10.0)
            off = log_ratio(setup)
            left_out, off = (1.0 / predicted, -off) if rate else (predicted, off)
            out.append(Prediction(setup, metric, left_out * np.exp(off), left_out, left_out))
    return out


def fit_of(found):
    return SimpleNamespace(predictions=found)


def test_a_trend_over_batches_is_learnt_and_said_to_help(setups):
    found = predictions(setups, lambda setup: 0.1 * np.log(setup.batch) - 0.2)
    judged = judge_regressor(residuals_of(found))
    assert judged.helps and judged.better == judged.architectures == len(MODELS)
    assert np.median(judged.corrected) < 0.4 * np.median(judged.without)
    said = verdict(fit_of(found))
    assert "it helps (better for 10 of 10 architectures); the profile does not contain it" in said
    assert said.splitlines()[1].split()[:3] == ["all", "240", "rows"]


def test_errors_of_single_models_cannot_be_learnt_from_others(setups):
    random = np.random.default_rng(3)
    offset = {model: random.normal(0.0, 0.15) for model in MODELS}
    found = predictions(setups, lambda setup: offset[setup.record.model])
    judged = judge_regressor(residuals_of(found))
    assert not judged.helps
    assert "it does not help" in verdict(fit_of(found))


def test_noise_is_not_said_to_be_a_trend(setups):
    random = np.random.default_rng(0)
    for _ in range(3):
        found = predictions(setups, lambda setup: random.normal(0.0, 0.1))
        assert not judge_regressor(residuals_of(found)).helps


def test_no_row_of_an_architecture_takes_part_in_its_own_correction(setups):
    data = residuals_of(predictions(setups, lambda setup: 0.1 * np.log(setup.batch) - 0.2))
    own = np.array([a == data.architectures[0] for a in data.architectures])
    changed = data._replace(log_ratio=np.where(own, 9.0, data.log_ratio))
    assert np.array_equal(left_out_corrections(data)[own], left_out_corrections(changed)[own])
    assert not np.array_equal(left_out_corrections(data)[~own], left_out_corrections(changed)[~own])


def test_verdicts_are_the_same_every_time(setups):
    found = predictions(setups, lambda setup: 0.05 * np.log(setup.batch))
    assert verdict(fit_of(found)) == verdict(fit_of(found))


def test_far_away_nothing_is_corrected():
    x = np.random.default_rng(0).normal(size=(50, len(FEATURES)))
    model = ResidualRegressor().fit(x, np.full(50, 0.3))
    assert np.allclose(model.predict(x + 40.0), 0.0, atol=1e-9)
    assert 0.15 < np.median(model.predict(x)) < 0.3


def test_a_gross_error_counts_as_a_factor_of_e():
    x = np.random.default_rng(0).normal(size=(20, len(FEATURES)))
    gross, large = np.full(20, 5.0), np.full(20, 1.0)
    assert np.array_equal(ResidualRegressor().fit(x, gross).predict(x), ResidualRegressor().fit(x, large).predict(x))


def test_rows_are_what_features_say_and_power_is_left_out(setups):
    found = predictions(setups[:1], lambda setup: 0.1, (*METRICS, "power_w", "energy_j_per_output_tok"))
    data = residuals_of([*found, Prediction(setups[0], "tpot_s_mean", 1.0, 1.0, None)])
    assert data.features.shape == (3, len(FEATURES))
    np.testing.assert_allclose(data.log_ratio, 0.1)
    assert data.sign.tolist() == [1.0, 1.0, -1.0]
    row = dict(zip(FEATURES, features(setups[0], "tpot_s_mean", 0.01)))
    assert row["log predicted_s"] == pytest.approx(np.log(0.01)) and row["log tp"] == 0.0
    assert row["log context_tok"] == pytest.approx(np.log(328)) and row["weight_byte"] == 2.0 and row["sparse"] == 0.0
    assert features(run("Qwen/Qwen3-30B-A3B", 4, 128), "ttft_s_mean", 0.1)[7:10] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("models", [0, 1, 2])
def test_too_few_architectures_are_not_judged(setups, models):
    chosen = [setup for setup in setups if setup.record.model in MODELS[:models]]
    assert "not tried" in verdict(fit_of(predictions(chosen, lambda setup: 0.1)))
