"""Settings that this version cannot take as stated: a prediction all the same, said, widened, and never fitted."""

import math

import msgspec
import pytest

from calibration.points import usable
from calibration.records import RunRecord
from calibration.setup import resolve
from validate.predict import Predictor

RUN = RunRecord(
    run_id="a", source="x", gpu="h100-sxm", model="meta-llama/Llama-3.1-8B-Instruct", load="static_batch",
    concurrency=4, input_tok=1000, output_tok=200, tpot_s_mean=0.01, power_w=500.0,
)  # fmt: skip


def changed(**fields):
    return msgspec.structs.replace(RUN, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_model_len": 512}, "exceed max_model_len (512)"),
        ({"input_tok": 200_000.0}, "more tokens than the model can read (131072)"),
        ({"ep": 2, "tp": 2, "n_gpus": 2}, "ep = 2 of a model without experts"),
        ({"weight_dtype": "int4", "activation_dtype": "int8"}, "int8 activations: simulated with bf16"),
        ({"power_mode": "turbo"}, "power mode turbo is not known"),
        ({"gpu": "thor-agx-128gb", "power_mode": "120W"}, "power mode 120W is not known: simulated in MAXN"),
    ],
)
def test_a_stand_in_is_said_widens_and_is_not_fitted(fields, said):
    run = changed(**fields)
    (found,) = resolve(run).stand_ins
    assert said in found
    prediction = Predictor().predict(run)
    assert prediction.status == "extrapolated" and found in prediction.notes
    assert prediction.values.keys() == {"tpot_s_mean", "power_w"}
    assert usable([run]) == [] and len(usable([RUN])) == 1


def test_no_stand_in_where_nothing_is_missing():
    assert resolve(RUN).stand_ins == ()
    assert resolve(changed(power_mode="300")).stand_ins == resolve(changed(power_mode="300W")).stand_ins == ()


def test_the_interval_of_a_stand_in_is_wider():
    plain, stood_in = (Predictor().predict(r).values["tpot_s_mean"] for r in (RUN, changed(max_model_len=512)))
    assert stood_in[0] == plain[0]
    assert math.log(stood_in[2] / stood_in[0]) > 1.1 * math.log(plain[2] / plain[0])


def test_runs_under_different_caps_do_not_share_their_physics():
    compute_bound = {"input_tok": 4000.0, "output_tok": 1.0, "ttft_s_mean": 0.1, "concurrency": 16}
    runs = [changed(run_id=str(w), power_mode=f"{w}W", **compute_bound) for w in (700, 300)]
    free, capped = Predictor().predict_all(runs)
    assert capped.values["ttft_s_mean"][0] > 1.3 * free.values["ttft_s_mean"][0]
    assert capped.values["power_w"][0] <= 300.0 < free.values["power_w"][0]
