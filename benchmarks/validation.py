"""How long `validate` takes over 5,000 runs: python benchmarks/validation.py [RUNS]

The runs are the shipped ones in turn, copied under new ids until there are enough; every one is simulated and checked.
Beside the seconds stands how many of the machine's own matrix products (512 x 512) fit into the same time, measured in
the same run: the machine may be shared.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from calibration.records import RunRecord, read_records
from calibration.vendored import DIRECTORY
from validate.suite import evidence_of, run_checks
from validate.summary import summary

RUNS = 5000


def records(count: int) -> list[RunRecord]:
    """`count` runs: all that ship, then copies with times a little off, so that they are no duplicates."""
    shipped = [record for path in sorted(DIRECTORY.glob("*.csv")) for record in read_records(path)]
    rng, out = np.random.default_rng(0), list(shipped[:count])
    while len(out) < count:
        record = shipped[int(rng.integers(len(shipped)))]
        factor = float(np.exp(rng.normal(0.0, 0.02)))
        figures = {name: value * factor for name, value in record.measured().items() if "_s_" in name}
        out.append(msgspec.structs.replace(record, run_id=f"copy-{len(out)}", **figures))
    return out


def product_s() -> float:
    """Seconds of one matrix product, the median of many."""
    a = np.ones((512, 512))
    taken = []
    for _ in range(50):
        start = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def main() -> None:
    """Print one line per stage."""
    runs, unit = records(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS), product_s()
    stages = []
    start = time.perf_counter()
    evidence = evidence_of(runs, "benchmark")
    stages.append(("simulated", time.perf_counter() - start))
    start = time.perf_counter()
    verdict = run_checks(evidence)
    stages.append(("checked", time.perf_counter() - start))
    start = time.perf_counter()
    summary(verdict)
    stages.append(("summed up", time.perf_counter() - start))
    for name, seconds in (*stages, ("together", sum(seconds for _, seconds in stages))):
        print(f"{len(runs):,} runs {name:<10} {seconds:6.1f} s  {1e3 * seconds / len(runs):6.2f} ms each  "
              f"{seconds / unit:9,.0f} matrix products")  # fmt: skip


if __name__ == "__main__":
    main()
