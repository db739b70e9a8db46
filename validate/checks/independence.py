"""F12: whether what counts as a test was seen by the fit, is counted twice, or was copied from the other side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from calibration.records import METRICS, RunRecord
from validate.cases import Case, Evidence
from validate.checks.shipped import shipped_rows
from validate.finding import Finding

# Two measurements agree in two digits by noise alone (a spread of 3 %); each further digit is a tenth of a chance.
NOISE_DIGITS = 2
TWIN_DIGITS = 4  # beyond noise, over all figures: once in 10,000 pairs of repeats
TWIN_FIGURES = 2
COPY_DIGITS = 8  # beyond noise, between different configurations, of which a file has a million pairs
COPY_FIGURES = 3
ROUNDED_DIGITS = 4  # a row of calibration data is recognised when it was rounded to so many
ROUNDED = 0.5e-3  # relative error of a number that is rounded to four digits, at most
# A simulator with errors of some per cent agrees so closely in one run of a hundred: in so many and such a share not.
ROUNDED_RUNS, ROUNDED_RUNS_SHARE = 4, 0.15
# Coarse figures, of two digits, agree by chance; nearly all of a table's do not.
COARSE_ROWS, COARSE_SHARE = 10, 0.9
_NAMES = ("run_id", "source", "flags", "rel_noise")


def check(evidence: Evidence) -> Iterator[Finding]:
    """In-sample runs (a note where they say so, else an alarm), double ones, and copied figures."""
    if evidence.own:
        yield from _in_sample(evidence)
    else:  # what another simulator was fitted on is not known
        yield from _copied_from_measurement(evidence.cases)
    yield from _twins(evidence.cases)
    yield from _copies(evidence.cases)


# ---- seen by the fit


def _in_sample(evidence: Evidence) -> Iterator[Finding]:
    renamed = _renamed(evidence)
    known = tuple(case.id for case in evidence.cases if case.id in evidence.fitted and case.id not in renamed)
    total = len(evidence.cases)
    if known:
        yield Finding(
            check="independence.in_sample", layer="provenance", fault="F12", severity="note", confidence="certain",
            runs=known, says=f"{len(known)} of {total} runs were used to fit the calibration: their errors are "
            f"in-sample, and never counted with those of the {total - len(known)} others",
            evidence={"in_sample": len(known), "runs": total},
        )  # fmt: skip
    if renamed:
        first, origin = next(iter(renamed.items()))
        yield Finding(
            check="independence.seen_by_fit", layer="provenance", fault="F12", severity="warn", confidence="certain",
            runs=tuple(renamed), says=f"{len(renamed)} of {total} runs stand under another name or source but are rows "
            f"that the calibration was fitted on: '{first}' is '{origin}'",
            evidence={"renamed": len(renamed), "runs": total, "worst_run": first, "original": origin},
            next="count them as in-sample, and hold out whole configurations that no fit has seen",
        )  # fmt: skip


def _renamed(evidence: Evidence) -> dict[str, str]:
    """Id of the original by id, of rows of the fit that a file holds under another id or source."""
    originals = _originals(evidence)
    comparable = [
        (case, originals[key]) for case in evidence.cases if (key := _configuration(case.record)) in originals
    ]
    alike: dict[str, tuple[Case, RunRecord]] = {}
    for case, rows in comparable:
        same = [row for row in rows if _same_figures(case.record, row)]
        itself = any((row.run_id, row.source) == (case.id, case.record.source) for row in same)
        if same and not itself:
            alike[case.id] = case, same[0]
    together = len(alike) >= COARSE_ROWS and len(alike) >= COARSE_SHARE * len(comparable)
    return {
        run: row.run_id
        for run, (case, row) in alike.items()
        if together or run in evidence.fitted or _shared_digits(case.record, row) >= TWIN_DIGITS
    }


def _originals(evidence: Evidence) -> dict[RunRecord, list[RunRecord]]:
    """Rows of the fits, by configuration, as far as they ship."""
    fitted = {
        found for profile in evidence.profiles.values() if profile.fitted_on for found in profile.fitted_on.row_hashes
    }
    out: dict[RunRecord, list[RunRecord]] = {}
    for found, record in shipped_rows().items() if fitted else ():
        if found in fitted:
            out.setdefault(_configuration(record), []).append(record)
    return out


def _same_figures(one: RunRecord, other: RunRecord) -> bool:
    """Whether all figures that both rows have agree to as many digits as a rounded copy keeps."""
    ours, theirs = one.measured(), other.measured()
    both = ours.keys() & theirs.keys()
    return bool(both) and all(abs(ours[name] / theirs[name] - 1.0) <= ROUNDED for name in both)


def _shared_digits(one: RunRecord, other: RunRecord) -> int:
    """Digits beyond noise that the figures of both rows have and that were compared."""
    ours, theirs = one.measured(), other.measured()
    both = ours.keys() & theirs.keys()
    return sum(min(_spare(ours[name]), _spare(theirs[name]), ROUNDED_DIGITS - NOISE_DIGITS) for name in both)


# ---- counted twice


def _own_figures(record: RunRecord) -> dict[str, float]:
    """Figures that were not computed from others of the row, by column."""
    return {name: x for name, x in record.measured().items() if f"derived:{name}" not in record.flag_list}


def _spare_digits(record: RunRecord) -> int:
    """Significant digits of a row's own figures beyond those that noise leaves alike."""
    return sum(map(_spare, _own_figures(record).values()))


def _spare(value: float) -> int:
    """Significant digits of a number, as a table would print it (at most nine), beyond those of noise."""
    digits = len(f"{value:.8e}".partition("e")[0].replace(".", "").rstrip("0"))
    return max(0, digits - NOISE_DIGITS)


def _twins(cases: Sequence[Case]) -> Iterator[Finding]:
    """One measurement under two ids."""
    groups: dict[RunRecord, list[Case]] = {}
    for case in cases:
        nameless = msgspec.structs.replace(case.record, **dict.fromkeys(_NAMES[:2], ""), flags=None, rel_noise=None)
        groups.setdefault(nameless, []).append(case)
    found = [g for g in groups.values() if len(g) > 1 and _telling(g[0].record, TWIN_FIGURES, TWIN_DIGITS)]
    if found:
        runs, figures = tuple(case.id for group in found for case in group), _own_figures(found[0][0].record)
        yield Finding(
            check="independence.twins", layer="provenance", fault="F12", severity="warn", confidence="likely",
            runs=runs, says=f"{len(runs)} runs are {len(found)} measurements: '{found[0][0].id}' and "
            f"'{found[0][1].id}' are alike in every setting and in every digit of {len(figures)} figures",
            evidence={"runs": len(runs), "measurements": len(found), "worst_run": found[0][0].id, **figures},
            next="keep one row of each; a repeat of a measurement differs in the last digits",
        )  # fmt: skip


def _copies(cases: Sequence[Case]) -> Iterator[Finding]:
    """The same figures under different configurations."""
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(_own_figures(case.record).items()), []).append(case)
    for group in groups.values():
        others = {_configuration(case.record) for case in group}
        if len(others) > 1 and _telling(group[0].record, COPY_FIGURES, COPY_DIGITS):
            yield Finding(
                check="independence.copies", layer="provenance", fault="F12", severity="warn", confidence="likely",
                runs=tuple(case.id for case in group), also=("F6",),
                says=f"{len(group)} runs of {len(others)} configurations have the same figures in every digit: "
                f"'{group[0].id}' and '{group[1].id}'",
                evidence={"runs": len(group), "configurations": len(others), **_own_figures(group[0].record)},
                next="look up which of the rows these figures were measured for",
            )  # fmt: skip


def _configuration(record: RunRecord) -> RunRecord:
    """A row without names and figures."""
    empty = dict.fromkeys((*METRICS, "flags", "rel_noise"))
    return msgspec.structs.replace(record, run_id="", source="", **empty)


def _telling(record: RunRecord, figures: int, digits: int) -> bool:
    """Whether equality of all figures cannot be chance."""
    return len(_own_figures(record)) >= figures and _spare_digits(record) >= digits


# ---- copied from the measurement


def _rounded_copies(cases: Sequence[Case], exact: set[str]) -> Iterator[Finding]:
    """Simulated figures that are the measured ones but for rounding, in far more runs than by chance."""
    compared = [case for case in cases if case.ratios]
    near = [
        case
        for case in compared
        if case.id not in exact and all(abs(ratio - 1.0) <= ROUNDED for ratio in case.ratios.values())
    ]
    if len(near) >= ROUNDED_RUNS and len(near) >= ROUNDED_RUNS_SHARE * len(compared):
        yield Finding(
            check="independence.copied_rounded", layer="provenance", fault="F12", severity="warn", confidence="likely",
            runs=tuple(case.id for case in near),
            says=f"the simulated figures of {len(near)} of {len(compared)} runs equal the measured ones to "
            f"{ROUNDED:.2%}: they look like rounded copies",
            evidence={"runs": len(near), "compared": len(compared), "worst_run": near[0].id, "bound": ROUNDED},
            next="see whether measured columns were written into the simulator's file",
        )  # fmt: skip


def _copied_from_measurement(cases: Sequence[Case]) -> Iterator[Finding]:
    """Simulated figures that are the measured ones: no simulation agrees in every digit."""
    found = []
    for case in cases:
        same = {name: case.measured[name] for name, ratio in case.ratios.items() if ratio == 1.0}
        spare = sum(map(_spare, same.values()))
        if same and len(same) == len(case.ratios) and spare >= TWIN_DIGITS:
            found.append((case, same))
    yield from _rounded_copies(cases, {case.id for case, _ in found})
    if found:
        (first, same), n = found[0], sum(len(same) for _, same in found)
        yield Finding(
            check="independence.copied", layer="provenance", fault="F12", severity="fail", confidence="likely",
            runs=tuple(case.id for case, _ in found), metrics=tuple(sorted({m for _, same in found for m in same})),
            says=f"{n} simulated figures of {len(found)} runs equal the measured ones in every digit: they are no "
            "second view",
            evidence={"runs": len(found), "figures": n, "worst_run": first.id, **same},
            next="see whether measured columns were written into the simulator's file",
        )  # fmt: skip
