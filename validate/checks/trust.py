"""How far our own simulation may be off by itself. A contradiction with it counts where it is larger than that.

A calibration that was fitted on runs of a GPU has that GPU's level and the shape of its curves. One that was put
together from tables, or borrowed from another GPU, has neither: levels are off by factors, models differently so, and
what it says of a run is no more than its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from validate.cases import Case, Evidence


def fitted_on_gpu(evidence: Evidence, cases: Sequence[Case]) -> bool:
    """Whether all these runs were simulated with a calibration of their own GPU, or by somebody else.

    Another simulator states no interval: its figures are taken at their word.
    """
    if not evidence.own:
        return True
    profiles = {case.prediction.profile for case in cases}
    found = [evidence.profiles.get(name) for name in profiles]
    return all(p is None or (p.fitted_on is not None and p.transferred is None) for p in found)


def slack(evidence: Evidence, cases: Sequence[Case], metric: str) -> float:
    """Log of the upper over the lower end of the 90 % interval, in the median; 0 for `fitted_on_gpu`.

    Two runs of such a simulation may be off by so much against each other and be right within their intervals.
    """
    if fitted_on_gpu(evidence, cases):
        return 0.0
    known = [case.prediction.values[metric] for case in cases if metric in case.prediction.values]
    return float(np.median([math.log(high / low) for _, low, high in known])) if known else 0.0
