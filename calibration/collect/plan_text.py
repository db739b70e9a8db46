"""What `calibrate collect` prints: the plan, and what a measurement left behind. As text or as JSON."""

from __future__ import annotations

import json

from calibration.collect.campaign import Result
from calibration.collect.planner import Plan
from calibration.collect.to_records import HELD_OUT, JOURNAL, RUNS, SAMPLES
from calibration.least_squares import IDENTIFIED_BELOW

NOISY = 0.05  # relative spread of repeats: quiet machines stay below 0.02


def plan_text(plan: Plan) -> str:
    """The plan as tables: points in order with their time, parameters with the spread that they should get."""
    lines = [f"{'point':44} {'seconds':>8}  use"]
    for point, seconds in zip(plan.points, plan.seconds):
        use = "A/A repeat" if point.repeat else "validate" if point.held_out else "fit"
        lines.append(f"{point.key:44} {seconds:8.1f}  {use}")
    lines += _parameters(plan)
    if plan.refused:
        lines += ["", "left out:", *(f"  {why}" for why in plan.refused)]
    lines += ["", f"{len(plan.points)} points, about {plan.total_s / 60.0:.1f} minutes after the engine has started"]
    return "\n".join(lines)


def _parameters(plan: Plan) -> list[str]:
    """What the fitted points identify; nothing for open loops, which are not fitted."""
    if not plan.identified:
        return []
    width = max(len(name) for name in plan.identified)
    lines = ["", f"{'parameter':{width}} {'prior spread':>12} {'expected':>9}  identified"]
    for name, (before, after) in plan.identified.items():
        known = "yes" if after <= IDENTIFIED_BELOW * before else "no"
        lines.append(f"{name:{width}} {100 * before:11.0f}% {100 * after:8.0f}%  {known}")
    return lines


def plan_json(plan: Plan) -> str:
    """The same as one JSON object; spreads are standard deviations of logarithms."""
    found = {
        "points": [
            {"key": p.key, "load": p.load, "concurrency": p.concurrency, "input_tok": p.input_tok,
             "output_tok": p.output_tok, "num_requests": p.num_requests, "request_rate_rps": p.request_rate_rps,
             "length_spread": p.length_spread, "repeat": p.repeat, "held_out": p.held_out,
             "cuda_graphs": p.cuda_graphs, "seconds": round(s, 3)}
            for p, s in zip(plan.points, plan.seconds)
        ],
        "total_s": round(plan.total_s, 3),
        "parameters": {n: {"prior_log_sd": b, "expected_log_sd": a} for n, (b, a) in plan.identified.items()},
        "left_out": list(plan.refused),
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)


def noise_of(result: Result) -> float | None:
    """The noise floor: relative spread of the A/A repeats; None without repeats."""
    found = [record.rel_noise for record in result.records if record.rel_noise is not None]
    return max(found) if found else None


def result_text(result: Result) -> str:
    """What was measured, in a few lines."""
    held = sum(record.flagged("held_out") for record in result.records)
    suspect = [record for record in result.records if record.flagged("suspect:")]
    lines = [f"{len(result.records)} of {result.planned} points measured in {result.folder}:"]
    lines.append(f"  {RUNS}: {len(result.records) - held} to fit, {HELD_OUT}: {held} to validate")
    lines.append(f"  {SAMPLES}: raw times, {JOURNAL}: everything")
    noise = noise_of(result)
    if noise is not None:
        lines.append(f"  noise floor: {100 * noise:.2f} % between repeats of one point")
    if noise is not None and noise > NOISY and not any(r.load == "open_loop" for r in result.records):
        lines.append("  that is much: did something else run, or do the clocks move? Measure again before fitting")
    lines += [
        f"  suspect: {r.run_id}: {'; '.join(f for f in r.flag_list if f.startswith('suspect:'))}" for r in suspect
    ]
    labels = ("overload", "not_stationary")
    lines += [f"  {label}: {r.run_id}" for label in labels for r in result.records if label in r.flag_list]
    lines += [f"  not measured: {failure.point.key}: {failure.reason}" for failure in result.failures]
    if result.left:
        lines.append(f"  {result.left} points left, as --minutes is used up; the same command goes on with them")
    return "\n".join(lines)


def result_json(result: Result) -> str:
    """The same as one JSON object."""
    held = sum(record.flagged("held_out") for record in result.records)
    found = {
        "folder": str(result.folder),
        "planned": result.planned,
        "measured": len(result.records),
        "to_fit": len(result.records) - held,
        "held_out": held,
        "suspect": [record.run_id for record in result.records if record.flagged("suspect:")],
        "left": result.left,
        "failed": {failure.point.key: failure.reason for failure in result.failures},
        "noise_floor": noise_of(result),
        "seconds": round(result.seconds, 3),
        "files": {"fit": RUNS, "validate": HELD_OUT, "samples": SAMPLES, "journal": JOURNAL},
    }
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
