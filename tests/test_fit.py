"""The fit on data made by the simulator itself: known parameters must come back, unknown ones be called so."""

import msgspec
import numpy as np
import pytest

from calibration.fit import PRIOR_LOG_SD, PowerFit, fit_times, predict_points, time_points, usable, with_parameters
from calibration.fit_profile import fit_profile
from calibration.records import RunRecord
from calibration.replay import replay, resolve, step_model
from calibration.write import profile_text, write_profile
from simulator.device import load_device
from simulator.errors import UserError
from simulator.profile import read_profile
from simulator.profile_choice import at_device, family_defaults, load_calibration

SMALL, LARGE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
TRUTH = {
    "weight_bandwidth_fraction": 0.79,
    "gemm_compute_fraction": 0.5,
    "kernel_start_s": 1.7e-5,
    "eager_launch_s": 1.5e-4,
}


def blank(run_id, model, prompt, output, batch=1, **extra):
    return RunRecord(
        run_id=run_id, source="made", gpu="orin-agx-64gb", power_mode="MAXN", model=model, weight_dtype="bf16",
        engine="vllm", load="static_batch", concurrency=batch, input_tok=prompt, output_tok=output, **extra,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prior():
    device = load_device("orin")
    here = at_device(family_defaults(device), device)
    return msgspec.structs.replace(here, gpu=device.id, reference_gpu=None)


@pytest.fixture(scope="module")
def made(prior):
    """Runs whose TTFT, TPOT and steady power come from the simulator with TRUTH."""
    truth = with_parameters(prior, TRUTH | {"busy_w": 8.0, "byte_j": 0.8e-10})
    rows = []
    for model in (SMALL, LARGE):
        for prompt in (16, 200, 700, 1500, 3000):
            rows.append(blank(f"{model}-p{prompt}", model, prompt, 1, ttft_s_mean=1.0))
        for prompt, output in ((100, 200), (1000, 500), (4000, 300)):
            steady = {"power_w": 1.0, "flags": "steady_window_power"}
            rows.append(blank(f"{model}-d{prompt}", model, prompt, output, tpot_s_mean=1.0, **steady))
    out = []
    for row in rows:
        setup = resolve(row)
        values = replay(setup, step_model(setup, truth))
        out.append(msgspec.structs.replace(row, **{name: values[name] for name in row.measured()}))
    return out


def test_known_parameters_come_back(made, prior):
    points = time_points(usable(made, "orin-agx-64gb"))
    found = fit_times(points, prior)
    assert found.converged
    left = predict_points(points, with_parameters(prior, found.values))
    assert np.median(np.abs(left)) < 0.005 and np.abs(left).max() < 0.08  # priors pull where one row speaks
    for name, true in TRUTH.items():
        assert abs(np.log(found.values[name] / true)) < 3 * found.spread[name] + 0.05, name
    assert np.allclose(np.diag(found.correlation), 1.0) and np.abs(found.correlation).max() <= 1 + 1e-9


def test_what_no_row_exercises_stays_at_its_prior(made, prior):
    """No row runs the full sampler or a batch, so their parameters keep value and spread."""
    found = fit_times(time_points(usable(made, "orin-agx-64gb")), prior)
    for name in ("sampler_start_s", "sampler_passes"):
        assert found.values[name] == pytest.approx(getattr(prior.parameters, name), rel=1e-3)
        assert found.spread[name] == pytest.approx(PRIOR_LOG_SD[name], rel=0.01)


def test_power_comes_back(made, prior):
    fit = PowerFit(usable(made, "orin-agx-64gb"), with_parameters(prior, TRUTH), None)
    x, _ = fit.solve()
    assert len(fit.rows) == 6 and np.abs(fit.errors(x)).max() < 0.02
    assert float(np.exp(x[fit.names.index("byte_j")])) == pytest.approx(0.8e-10, rel=0.3)
    assert sum(len(errors) for errors in fit.left_out()) == 6


@pytest.mark.slow
def test_a_profile_predicts_its_own_rows_after_writing_and_loading(made, prior, tmp_path):
    """Loading scales profiles to clocks and boards: on the fitted GPU in the fitted mode that must change nothing."""
    device = load_device("orin")
    result = fit_profile(made, device.id, family_defaults(device), ("made.csv",))
    path = tmp_path / "p.toml"
    write_profile(path, result.profile, "x", overwrite=False)
    loaded = load_calibration(device, str(path))
    assert loaded.parameters.busy_w == pytest.approx(result.profile.parameters.busy_w, rel=1e-4)
    for row in made:
        setup = resolve(row)
        values = replay(setup, step_model(setup, loaded))
        for name, measured in row.measured().items():
            assert values[name] == pytest.approx(measured, rel=0.1), (row.run_id, name)
    assert len(loaded.fitted_on.row_hashes) == len(made) and loaded.log_sd["ttft"] >= 0.03


@pytest.mark.slow
def test_what_was_never_measured_keeps_the_priors_interval(made, prior):
    decode_only = [row for row in made if row.tpot_s_mean and row.model == SMALL]
    profile = fit_profile(decode_only, "orin-agx-64gb", prior, ("made.csv",)).profile
    assert profile.log_sd["ttft"] == pytest.approx(prior.log_sd["ttft"])
    assert profile.log_sd["tpot"] >= prior.log_sd["time"]  # one model: nothing was left out
    assert any("no TTFT was measured" in note for note in profile.notes)


def test_suspect_rows_and_other_gpus_are_not_used(made):
    flagged = [msgspec.structs.replace(row, flags="suspect:outlier") for row in made[:3]]
    assert len(usable(flagged + made[3:], "orin-agx-64gb")) == len(made) - 3
    assert usable(made, "h100-sxm") == []


def test_a_written_profile_is_read_back_the_same(tmp_path, prior):
    path = tmp_path / "p.toml"
    write_profile(path, prior, "calibrate fit x", overwrite=False)
    assert read_profile(path) == prior
    assert path.read_text() == profile_text(prior, "calibrate fit x")
    with pytest.raises(UserError, match="exists"):
        write_profile(path, prior, "x", overwrite=False)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("kernel_start_s = ", "kernel_start_ms = ", "kernel_start_ms"),
        ("gemm_compute_fraction = ", "gemm_compute_fraction = 7 #", "expected 0.1 to 1"),
        ("[parameters]", "[parameters", "not valid TOML"),
        ("time = ", "tempo = ", "'time'"),
    ],
)
def test_broken_profiles_are_refused(tmp_path, prior, old, new, complaint):
    path = tmp_path / "p.toml"
    path.write_text(profile_text(prior, "x").replace(old, new))
    with pytest.raises(UserError) as error:
        read_profile(path)
    assert complaint in str(error.value) and str(path) in str(error.value)
