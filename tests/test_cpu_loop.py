"""The whole loop on the machine at hand: data sheet, sweep, fit, prediction of points that the fit has not seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.collect.journal import read_journal
from calibration.records import read_records
from simulator.device import load_device
from simulator.profile import read_profile

pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parent.parent / "examples" / "calibrate_this_cpu.py"
# On a machine with nothing else to do the median error is below 0.15 (docs/cpu-calibration.md); here anything may run
# beside it.
LOOSE = 0.40


@pytest.mark.slow
def test_a_processor_calibrates_itself_and_predicts_points_in_between(tmp_path, capsys):
    command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path), "--plot", str(tmp_path / "plot.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(
            f"\nprocessor: median error {found['median_error_held_out']:.1%} on {found['points_held_out']} held-out "
            f"points ({found['median_error_held_out_without_fit']:.1%} without the fit), noise floor "
            f"{found['noise_floor']:.1%}, {found['runs_held_up']} of {found['runs']} runs held up by other work, "
            f"{found['seconds']:.0f} s, load average {found['load_1min']:.1f}"
        )
    assert found["median_error_held_out"] < LOOSE

    sheet, profile = load_device(tmp_path / "host-cpu.toml"), read_profile(tmp_path / "host-cpu.transformers.toml")
    assert profile.gpu == sheet.id == "host-cpu" and sheet.compute.sm_count == found["threads"]
    assert {"gemm16.memory_fraction", "gemm16.compute_fraction", "engine.step_host_s"} <= set(profile.fitted)

    held_out = {r.run_id for r in read_records(tmp_path / "runs.csv") if r.flagged("held_out")}
    assert len(held_out) == found["points_held_out"] >= 8
    assert profile.fitted_on.rows == found["points_fitted"] >= 10  # and so none of those held out
    journal = read_journal(tmp_path / "journal.jsonl")
    assert len(journal.entries) == found["rounds"] * (found["points_fitted"] + found["points_held_out"])
    assert not journal.failures and not journal.torn
    assert 0 <= found["runs_held_up"] <= found["runs"] == len(journal.entries)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
