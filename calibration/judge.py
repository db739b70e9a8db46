"""Fits turned into judged numbers: what the ledger is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from calibration.family_fit import FamilyFit, judged_metrics
from calibration.judged import Judged
from calibration.points import spread_kind
from calibration.records import RunRecord
from calibration.regressor import ServingModel, prior_calibrations
from calibration.replay import replay
from calibration.roofline_baseline import roofline_metrics
from calibration.setup import Setup, Unsupported, resolve, step_model
from calibration.trajectory import trajectory_of
from simulator.errors import UserError
from simulator.profile_choice import at_device


def judge(
    fits: Sequence[FamilyFit], records: Iterable[RunRecord], progress: Callable[[int, int], None] | None = None
) -> list[Judged]:
    """Every judged number of the fits beside the plain roofline, then those of the rows that no fit used.

    The spread claimed for a left-out prediction is that of the family's fit.
    """
    total, done, out = sum(len(fit.predictions) for fit in fits), 0, []
    used: set[str] = set()
    for fit in fits:
        rooflines: dict[str, dict[str, float]] = {}
        for p in fit.predictions:
            run = p.setup.record.run_id
            used.add(run)
            if run not in rooflines:
                rooflines[run] = _roofline(p.setup)
            sd = fit.log_sd[spread_kind(p.setup, p.metric)] if fit.fitted else _prior_sd(fit.times, p.setup, p.metric)
            out.append(_judged(p.setup, p.metric, p.in_sample, p.left_out, rooflines[run].get(p.metric), sd))
            done += 1
            if progress and done % 200 == 0:
                progress(done, total)
    return out + _unused(fits, [record for record in records if record.run_id not in used])


def _judged(setup: Setup, metric: str, value: float, left_out: float | None, roofline: float | None, sd: float):
    record = setup.record
    return Judged(
        record, record.source, setup.device.id, record.model, setup.family.id, metric, record.measured()[metric], value,
        left_out, roofline, sd, record.flag_list,
    )  # fmt: skip


def _prior_sd(times: ServingModel, setup: Setup, metric: str) -> float:
    return times.priors_[setup.device.id].spread(spread_kind(setup, metric))


def _roofline(setup: Setup) -> dict[str, float]:
    trajectory = trajectory_of(
        setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp, setup.async_scheduling
    )
    return roofline_metrics(setup, trajectory)


def _unused(fits: Sequence[FamilyFit], records: Iterable[RunRecord]) -> list[Judged]:
    """Suspect and ambiguous rows, predicted by the fit of their engine and GPU, or by what is known without one."""
    by_gpu = {(fit.family, gpu): fit for fit in fits for gpu in fit.gpus}
    out = []
    for record in records:
        try:
            setup = resolve(record)
            fit = by_gpu.get((setup.family.id, setup.device.id))
            if fit is not None:
                calibration = (fit.power or fit.times).fit_.calibration(setup)
            else:
                calibration = at_device(prior_calibrations([setup])[setup.device.id], setup.device)
            values = replay(setup, step_model(setup, calibration)).values
        except (Unsupported, UserError):
            continue
        for metric in judged_metrics(setup):
            if metric in values:
                sd = calibration.spread(spread_kind(setup, metric))
                out.append(_judged(setup, metric, values[metric], None, None, sd))
    return out
