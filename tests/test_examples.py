"""Every example runs and prints a table."""

import subprocess
import sys
from pathlib import Path

import pytest

# Those have tests of their own (test_cpu_loop.py, test_planning_*.py), which run them with their figures.
APART = {
    "calibrate_this_cpu.py",
    "pdr_against_self_consistency.py",
    "pdr_power_modes.py",
    "cost_per_answer.py",
    "precisions.py",
    "capacity_for_azure.py",
}
EXAMPLES = sorted(p for p in (Path(__file__).parent.parent / "examples").glob("*.py") if p.name not in APART)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(path):
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) >= 6 and done.stderr == ""
