"""The fit on data made by the simulator itself: known parameters must come back, unknown ones be called so."""

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.cli import calibrate
from calibration.family_fit import fit_family, spreads
from calibration.joint_fit import with_fitted
from calibration.least_squares import fit_parameters
from calibration.points import architecture_key, points_of, usable
from calibration.profile_files import engine_text, fitted_engine, gpu_profile
from calibration.records import COLUMNS, RunRecord
from calibration.regressor import ServingModel, prior_calibrations, schedule_points
from calibration.replay import replay
from calibration.setup import resolve, step_model
from calibration.write import profile_text, write_profile
from simulator.device import load_device
from simulator.errors import UserError
from simulator.kernels.spec import ParameterSpec
from simulator.parameters import flatten
from simulator.profile import read_profile
from simulator.profile_choice import load_calibration
from simulator.profile_parts import read_engine

MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct")
TRUTH = {
    "engine.small_kernel_s": 4.5e-6,
    "engine.step_host_s": 2.0e-3,
    "engine.request_s": 1.0e-2,
    "l40s/gemm16.memory_fraction": 0.70,
    "l40s/power.busy_w": 40.0,
    "l40s/power.byte_j": 2.4e-10,
}


def record(run_id, model, prompt, output, batch=1, **extra):
    return RunRecord(
        run_id=run_id, source="made", gpu="l40s", model=model, weight_dtype="bf16", engine="vllm",
        engine_version="0.11.0", load="static_batch", concurrency=batch, input_tok=prompt, output_tok=output, **extra,
    )  # fmt: skip


def made_records(models=MODELS, truth=TRUTH):
    """Runs whose latencies and power come from the simulator with `truth`."""
    rows = []
    for model in models:
        for prompt in (16, 200, 1500):
            rows.append(record(f"{model}-p{prompt}", model, prompt, 1, ttft_s_mean=1.0))
        for prompt, output, batch in ((100, 200, 1), (500, 300, 8), (1000, 100, 32)):
            rows.append(record(f"{model}-d{batch}", model, prompt, output, batch, tpot_s_mean=1.0, power_w=1.0))
    calibration = with_fitted(prior_calibrations([resolve(rows[0])])["l40s"], "l40s", truth)
    out = []
    for row in rows:
        setup = resolve(row)
        values = replay(setup, step_model(setup, calibration)).values
        out.append(msgspec.structs.replace(row, **{name: values[name] for name in row.measured()}))
    return out


@pytest.fixture(scope="module")
def made():
    return made_records()


@pytest.fixture(scope="module")
def family(made):
    return fit_family(usable(made))


def test_known_parameters_come_back(family):
    assert family.times.fit_.solution.converged
    for p in family.predictions:
        assert p.in_sample == pytest.approx(p.measured, rel=0.05), (p.setup.record.run_id, p.metric)
    sd = {**family.times.fit_.solution.log_sd, **family.power.fit_.solution.log_sd}
    for name, true in TRUTH.items():
        assert abs(np.log(family.values[name] / true)) < 2.0 * sd[name] + 0.05, name


def test_what_no_row_exercises_is_not_fitted_and_what_rows_cannot_tell_is_named(family):
    names = family.times.names_
    assert not any("sampler" in name or "skew" in name or "gemm8" in name or "collective" in name for name in names)
    solution = family.times.fit_.solution
    assert solution.not_identified and set(solution.not_identified) < set(names)
    assert "l40s/gemm16.memory_fraction" not in solution.not_identified


def test_left_out_errors_are_larger_than_in_sample_and_make_the_spread(family):
    held = [abs(np.log(p.left_out / p.measured)) for p in family.predictions]
    inside = [abs(np.log(p.in_sample / p.measured)) for p in family.predictions]
    assert np.mean(held) >= np.mean(inside) and all(0.03 <= sd < 0.5 for sd in family.log_sd.values())
    assert set(family.log_sd) == {"ttft", "tpot", "power"}


def test_models_of_equal_architecture_are_left_out_together():
    twin = {"Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B"}
    keys = {architecture_key(resolve(record(name, name, 100, 10))) for name in twin}
    assert len(keys) == 1
    assert architecture_key(resolve(record("a", MODELS[1], 100, 10))) not in keys


def test_the_estimator_keeps_scikit_learns_promises(made):
    points = points_of(usable(made))
    model = ServingModel(max_evaluations=4).fit(points)
    assert model.predict(points).shape == (len(points),) and model.score(points) <= 0.0
    again = ServingModel(**model.get_params()).fit(points)
    assert np.array_equal(again.predict(points), model.predict(points))
    scaled = model.score(points, np.array([2.0 * point.measured for point in points]))
    assert scaled < model.score(points)
    sources = model.cross_validate(points, group_of=lambda point: point.setup.record.source)
    assert sources == {}  # one source: nothing to leave out


def test_a_fleet_prices_what_a_replay_predicts(made):
    points = points_of(usable(made))
    fleet = schedule_points(points)
    calibration = prior_calibrations(fleet.setups)["l40s"]
    for setup, values in zip(fleet.setups, fleet.predict(lambda _: calibration)):
        exact = replay(setup, step_model(setup, calibration)).values
        for name, value in values.items():
            assert value == pytest.approx(exact[name], rel=5e-3), (setup.record.run_id, name)


def test_profiles_and_engine_files_are_read_back_the_same(family, made, tmp_path):
    profile = gpu_profile(family, "l40s", made, ("made.csv",))
    path = tmp_path / "p.toml"
    write_profile(path, profile, "x", overwrite=False)
    back = read_profile(path)
    assert back.id == "l40s.vllm-0.8" and set(back.fitted) == {n.rpartition("/")[2] for n in family.times.names_}
    for name, value in flatten(profile.parameters).items():
        assert flatten(back.parameters)[name] == pytest.approx(value, rel=1e-5), name
    assert len(back.correlation) == len(back.fitted) and back.fitted_on.rows == len(made)
    assert {"time", "tpot", "ttft", "power", "energy"} <= set(back.log_sd)
    with pytest.raises(UserError, match="exists"):
        write_profile(path, profile, "x", overwrite=False)
    engine = fitted_engine(family)
    (tmp_path / "e.toml").write_text(engine_text(engine, "x"))
    read = read_engine(tmp_path / "e.toml")
    assert read.prior == engine.prior and read.parameters.step_host_s == pytest.approx(
        engine.parameters.step_host_s, rel=1e-5
    )


def test_a_loaded_profile_predicts_the_rows_it_was_fitted_on(family, made, tmp_path):
    """Loading scales profiles to clocks and boards: on the fitted GPU that must change nothing."""
    path = tmp_path / "p.toml"
    write_profile(path, gpu_profile(family, "l40s", made, ("made.csv",)), "x", overwrite=False)
    loaded = load_calibration(load_device("l40s"), str(path))
    for p in family.predictions:
        value = replay(p.setup, step_model(p.setup, loaded)).values[p.metric]
        assert value == pytest.approx(p.in_sample, rel=5e-3), (p.setup.record.run_id, p.metric)


def test_one_architecture_alone_keeps_a_wide_interval():
    result = fit_family(usable(made_records(MODELS[:1])))
    profile = gpu_profile(result, "l40s", [], ("made.csv",))
    prior = prior_calibrations(result.fleet.setups)["l40s"]
    assert all(p.left_out is None for p in result.predictions)
    assert profile.log_sd["tpot"] >= prior.spread("tpot") * 0.999
    assert any("one architecture only" in note for note in profile.notes)


def test_suspect_ambiguous_and_other_rows_are_not_used(made):
    flagged = [msgspec.structs.replace(row, flags=flag) for row, flag in zip(made, ("suspect:x", "ambiguous:y"))]
    assert len(usable(flagged + made[2:])) == len(made) - 2
    assert usable(made, "h100-sxm") == []


def test_spreads_hold_nine_of_ten_errors(family):
    wide = [msgspec_free(p, 1.0 + 0.2 * (i % 10 == 0)) for i, p in enumerate(family.predictions * 20)]
    found = spreads(wide)
    assert all(sd < 0.2 / 1.6 for sd in found.values())


def msgspec_free(prediction, factor):
    from dataclasses import replace

    return replace(prediction, left_out=None, in_sample=prediction.measured * factor)


def test_a_parameter_at_one_still_moves():
    """On a logarithmic scale 1 is 0: steps must not be relative to it."""
    specs = {"a": ParameterSpec("1", "x", 0.1, 10.0, 1.0)}
    found = fit_parameters({"a": 1.0}, specs, lambda v: np.full(50, np.log(v["a"] / 2.0) / 0.01))
    assert found.values["a"] == pytest.approx(2.0, rel=1e-3) and found.not_identified == ()


def runs_file(tmp_path, records):
    import csv

    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in records:
            writer.writerow({k: "" if v is None else v for k, v in msgspec.structs.asdict(row).items()})
    return path


@pytest.mark.slow
def test_the_command_fits_writes_and_says_what_it_does_not_know(made, tmp_path):
    path, out = runs_file(tmp_path, made), tmp_path / "mine.toml"
    result = CliRunner().invoke(calibrate, ["fit", str(path), "--gpu", "l40s", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "gemm16.memory_fraction" in result.output and "  no" in result.output and "model left out" in result.output
    assert read_profile(out).gpu == "l40s"
    again = CliRunner().invoke(calibrate, ["fit", str(path), "--gpu", "l40s", "--out", str(out)])
    assert again.exit_code == 2 and "exists" in again.stderr


@pytest.mark.slow
def test_the_command_prints_the_same_as_json(made, tmp_path):
    path, out = runs_file(tmp_path, made), tmp_path / "mine.toml"
    result = CliRunner().invoke(calibrate, ["fit", str(path), "--gpu", "l40s", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    found, profile = json.loads(result.stdout), read_profile(out)
    assert {p["name"]: p["log_sd"] for p in found["parameters"]} == profile.parameter_log_sd
    assert np.shape(found["correlation"]) == (len(found["fitted"]),) * 2 and not all(
        p["identified"] for p in found["parameters"]
    )
    for metric, errors in found["errors"].items():
        assert errors["in_sample"]["n"] > 0 and abs(errors["in_sample"]["bias"]) <= errors["in_sample"]["mape"], metric


def test_open_loops_alone_cannot_be_fitted_and_the_command_says_why(made, tmp_path):
    loops = [msgspec.structs.replace(row, load="open_loop", request_rate_rps=1.0) for row in made[:3]]
    for rows, why in (
        (loops, "all are open loops"),
        ([], "the files hold none (calibrate collect puts open loops into"),
    ):
        path = runs_file(tmp_path, rows)
        result = CliRunner().invoke(calibrate, ["fit", str(path), "--out", str(tmp_path / "o.toml"), "--gpu", "l40s"])
        assert result.exit_code == 2 and "no usable rows of GPU 'l40s': " + why in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpu", "warp"], "unknown GPU 'warp'"),
        (["--gpu", "h100"], "no usable rows of GPU 'h100-sxm'"),
        (["--gpu", "l40s", "--engine", "sglang"], "no usable rows of engine family 'sglang'"),
        (["--gpu", "l40s", "--prior", "none.toml"], "does not exist"),
    ],
)
def test_bad_use_of_the_command_ends_with_one_sentence(made, tmp_path, arguments, complaint):
    path = runs_file(tmp_path, made[:6])
    result = CliRunner().invoke(calibrate, ["fit", str(path), "--out", str(tmp_path / "o.toml"), *arguments])
    assert result.exit_code == 2 and complaint in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("small_kernel_s = ", "small_kernel_ms = ", "small_kernel_ms"),
        ("compute_fraction = ", "compute_fraction = 7 #", "expected 0.05 to 0.98"),
        ("[parameters.gemm16]", "[parameters.gemm16", "not valid TOML"),
        ("time = ", "tempo = ", "'time'"),
    ],
)
def test_broken_profiles_are_refused(tmp_path, old, new, complaint):
    prior = prior_calibrations([resolve(record("a", MODELS[0], 100, 10))])["l40s"]
    path = tmp_path / "p.toml"
    path.write_text(profile_text(prior, "x").replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_profile(path)
    assert complaint in str(error.value) and str(path) in str(error.value)
