"""Calibrate the processor at hand, completely and in about a minute: data sheet, sweep, fit, check on other sizes.

    python examples/calibrate_this_cpu.py [--out FOLDER] [--plot FIGURE.png] [--json]

A small model with random weights runs in plain PyTorch. A sweep over batch and context is fitted; then points of sizes
in between, which the fit has never seen, are predicted and compared. Needs: pip install 'tokenflight[collect]'.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from calibration.collect.backends import BackendOptions, open_backend
from calibration.collect.host_sheet import FILE, GPU, measure_rates, write_host_sheet
from calibration.collect.journal import Journal, read_journal
from calibration.collect.point import Backend, Point
from calibration.collect.session import Session
from calibration.collect.to_records import csv_bytes, records_of
from calibration.collect.validity import disturbed
from calibration.family_fit import fit_family
from calibration.points import usable
from calibration.profile_files import gpu_profile
from calibration.records import METRICS as MEASURED
from calibration.records import RunRecord
from calibration.regressor import prior_calibrations
from calibration.write import write_profile
from validate.predict import Predictor

# Small enough for a sweep in seconds, large enough that its weights (68 MB) do not stay in a cache and that arithmetic
# and memory, not Python, decide how long a step takes.
MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "hidden_size": 512,
    "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 8192, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
OUTPUT_TOK = 12
# Batch and context; what is held out lies in between.
FITTED = ((1, 32), (1, 128), (1, 512), (1, 1024), (4, 32), (4, 128), (4, 512), (16, 32), (16, 128), (32, 32))
HELD_OUT = ((1, 64), (1, 768), (2, 64), (2, 256), (6, 64), (6, 256), (12, 48), (12, 96), (24, 48))
METRICS = ("ttft_s_mean", "tpot_s_mean")
SEED = 0


@dataclass(frozen=True)
class Row:
    """A measured number and what is predicted for it: by the fit, and by what was thought before. Seconds."""

    batch: int
    context_tok: int
    metric: str
    held_out: bool
    measured: float
    predicted: float
    before: float

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.measured - 1.0


def plan(repeat: int) -> list[Point]:
    """All points once, in an order of this round's own: a drift must not look like an effect of size."""
    points = [
        Point("static_batch", batch, tokens, OUTPUT_TOK, batch, repeat=repeat, held_out=held_out)
        for held_out, sizes in ((False, FITTED), (True, HELD_OUT))
        for batch, tokens in sizes
    ]
    return [points[i] for i in np.random.default_rng(SEED + repeat).permutation(len(points))]


def measure(
    backend: Backend, sheet: Path, folder: Path, rounds: int, budget_s: float
) -> tuple[list[RunRecord], int]:  # fmt: skip
    """(records of all points, `rounds` times over, or as often as there is time for (at least twice), how many of them
    other work on this machine held up).
    """
    path, began, facts = folder / "journal.jsonl", time.monotonic(), backend.facts()
    manifest = {
        "set": "host", "asked": {"backend": "transformers"}, "gpu": str(sheet), "seed": SEED, "facts": facts,
        "plan": plan(0),
    }  # fmt: skip
    with Journal(path) as journal:
        journal.start(manifest)
        session = Session(backend, journal, facts, seed=SEED, seconds_per_point=0.0)
        for repeat in range(rounds):
            if repeat >= 2 and (time.monotonic() - began) * (repeat + 1) / repeat > budget_s:
                break
            session.run(plan(repeat), frozenset())
    found = read_journal(path)
    held_up = sum(disturbed(seen) for entry in found.entries for seen in entry.observations)
    return records_of(found), held_up


def quietest(records: list[RunRecord]) -> tuple[list[RunRecord], float]:
    """(one record per point with the best of its times, noise floor).

    Whatever else the machine does only adds time, so the shortest is nearest to the truth. Noise floor: how much longer
    the second shortest is, median over points and metrics.
    """
    by_point: dict[tuple, list[RunRecord]] = {}
    for record in records:
        by_point.setdefault((record.concurrency, record.input_tok), []).append(record)
    best, gaps = [], []
    for found in by_point.values():
        times = {name: sorted(getattr(record, name) for record in found) for name in METRICS}
        gaps += [values[1] / values[0] - 1.0 for values in times.values()]
        fastest = dict.fromkeys(MEASURED) | {name: values[0] for name, values in times.items()}
        # The shortest counts even where all were held up; how many were is said at the end.
        fastest["flags"] = ";".join(flag for flag in found[0].flag_list if flag != "suspect:disturbed")
        best.append(msgspec.structs.replace(found[0], **fastest))
    return best, float(np.median(gaps))


def fit(records: list[RunRecord], path: Path) -> None:
    """Fit a profile to the records and write it."""
    setups = usable(records, GPU)
    result = fit_family(setups, leave_out=False, priors=prior_calibrations(setups, fitted=True))
    profile = gpu_profile(result, GPU, records, ("runs.csv",))
    write_profile(path, profile, "examples/calibrate_this_cpu.py", overwrite=True)


def compare(records: list[RunRecord], profile: Path) -> list[Row]:
    """Every measured number with its predictions."""
    after, before = (Predictor(path).predict_all(records) for path in (str(profile), None))
    return [
        Row(round(record.concurrency), round(record.input_tok), metric, record.flagged("held_out"),
            getattr(record, metric), fitted.values[metric][0], prior.values[metric][0])
        for record, fitted, prior in zip(records, after, before)
        for metric in METRICS
    ]  # fmt: skip


def median_error(rows: list[Row], metric: str | None = None, before: bool = False) -> float:
    """Median of |predicted / measured - 1|."""
    some = [row for row in rows if metric in (None, row.metric)]
    return float(np.median([abs((row.before if before else row.predicted) / row.measured - 1.0) for row in some]))


def summary(rows: list[Row], noise: float, rounds: int, seconds: float, backend: Backend) -> dict:
    """The figures that say how good the calibration is."""
    held_out, fitted = [r for r in rows if r.held_out], [r for r in rows if not r.held_out]
    return {
        "processor": backend.facts().settings["processor"],
        "threads": backend.facts().settings["threads"],
        "versions": backend.facts().versions,
        "rounds": rounds,
        "seconds": seconds,
        "load_1min": os.getloadavg()[0],
        "points_fitted": len(fitted) // len(METRICS),
        "points_held_out": len(held_out) // len(METRICS),
        "noise_floor": noise,
        "median_error_fitted": median_error(fitted),
        "median_error_held_out": median_error(held_out),
        **{f"median_error_held_out_{metric[:4]}": median_error(held_out, metric) for metric in METRICS},
        "median_error_held_out_without_fit": median_error(held_out, before=True),
        "worst_error_held_out": max(abs(row.error) for row in held_out),
    }


def text(rows: list[Row], found: dict) -> str:
    """The held-out points as a table, and the summary."""
    percent = {name: f"{100 * value:.1f}%" for name, value in found.items() if isinstance(value, float)}
    first, later = (percent[f"median_error_held_out_{metric[:4]}"] for metric in METRICS)
    lines = [
        f"{found['processor']}, {found['threads']} thread{'s' * (found['threads'] > 1)}, "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"{found['points_fitted']} points fitted, {found['points_held_out']} held out, each the best of "
        f"{found['rounds']}; {found['seconds']:.0f} s in all, load average {found['load_1min']:.1f}",
        "",
        "held out          first token                        time per token",
        "batch context     measured   predicted   error       measured   predicted   error",
    ]
    held_out = sorted((r for r in rows if r.held_out), key=lambda r: (r.batch, r.context_tok))
    for pair in zip(*([r for r in held_out if r.metric == metric] for metric in METRICS)):
        cells = (f"{1e3 * r.measured:7.1f} ms  {1e3 * r.predicted:7.1f} ms  {100 * r.error:+6.1f}%" for r in pair)
        lines.append(f"{pair[0].batch:5} {pair[0].context_tok:7}   {'     '.join(cells)}")
    return "\n".join((
        *lines,
        "",
        f"median error, held out    {percent['median_error_held_out']} (first token {first}, time per token {later}; "
        f"worst {percent['worst_error_held_out']})",
        f"median error, fitted      {percent['median_error_fitted']}",
        f"before the fit, held out  {percent['median_error_held_out_without_fit']}",
        f"noise floor (A/A)         {percent['noise_floor']}",
        f"held up by other work     {found['runs_held_up']} of {found['runs']} runs",
    ))  # fmt: skip


def draw(rows: list[Row], path: Path) -> None:
    """Predicted against measured, both on logarithmic axes, with a band of 15 %."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    ends = np.array([min(r.measured for r in rows) / 1.5, max(r.measured for r in rows) * 1.5]) * 1e3
    axes.fill_between(ends, ends / 1.15, ends * 1.15, color="#dddddd", label="within 15 %", linewidth=0)
    axes.plot(ends, ends, color="#888888", linewidth=0.8)
    for metric, colour, name in zip(METRICS, ("#0072B2", "#D55E00"), ("first token", "time per token")):
        for held_out, face, what in ((False, "none", "fitted"), (True, colour, "held out")):
            some = [r for r in rows if (r.metric, r.held_out) == (metric, held_out)]
            axes.scatter([1e3 * r.measured for r in some], [1e3 * r.predicted for r in some], s=26, facecolors=face,
                         edgecolors=colour, label=f"{name}, {what}")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", xlim=ends, ylim=ends)
    axes.set_title("A processor calibrated by itself", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def calibrate(folder: Path, threads: int, rounds: int, budget_s: float) -> tuple[list[Row], dict]:
    """The whole loop, its files in `folder`: what was measured and predicted, and the summary."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(MODEL), encoding="utf-8")
    rates = measure_rates(threads, tries=1)
    backend = open_backend(
        "transformers",
        BackendOptions(str(config), GPU, device="cpu", seed=SEED, settings={"threads": threads, "tries": 2}),
    )
    sheet = folder / FILE
    measured, held_up = measure(backend, sheet, folder, rounds, budget_s)
    # Before and after the sweep, as other work on the machine comes and goes.
    write_host_sheet(folder, rates.better(measure_rates(threads, tries=1)))
    records, noise = quietest(measured)
    (folder / "runs.csv").write_bytes(csv_bytes(records))
    profile = folder / f"{GPU}.transformers.toml"
    fit([record for record in records if not record.flagged("held_out")], profile)
    rows = compare(records, profile)
    found = summary(rows, noise, len(measured) // len(records), time.monotonic() - began, backend)
    return rows, found | {"runs": len(measured), "runs_held_up": held_up}


def main() -> None:
    """Read the command line, calibrate, print."""
    parser = argparse.ArgumentParser(description="Calibrate the processor at hand and check the calibration.")
    parser.add_argument("--out", help="folder for sheet, journal, records and profile (default: a temporary one)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one is disturbed least (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, choices=range(2, 33), metavar="N",
                        help="times that every point is measured, at least 2 (default: 3)")  # fmt: skip
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of measuring at most (default: 60)")
    parser.add_argument("--plot", help="write a figure here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows, found = calibrate(Path(asked.out or temporary), asked.threads, asked.rounds, asked.budget)
    print(json.dumps(found) if asked.json else text(rows, found))
    if asked.plot:
        draw(rows, Path(asked.plot))


if __name__ == "__main__":
    main()
