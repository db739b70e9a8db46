"""Evidence put together anew after a change: predictions are kept, and made again where a configuration changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from calibration.records import METRICS, RunRecord
from calibration.vendored import fitted_run_ids
from validate.cases import Case, Evidence
from validate.predict import Prediction, Predictor
from validate.self_test.changes import configured
from validate.simulated import simulated_record
from validate.suite import with_cases

_ALL_MEASURED = dict.fromkeys((name for name in METRICS if name != "kv_capacity_tok"), 1.0)


class Bench:
    """Predicts each configuration once, however often it is asked for with other figures."""

    def __init__(self) -> None:
        self._predictor = Predictor()
        self._known: dict[RunRecord, Prediction] = {}

    def predict(self, record: RunRecord) -> Prediction:
        """The prediction of a run for the metrics that it measured."""
        key = configured(record)
        if key not in self._known:
            # Intervals are made for measured columns: ask for all of them, give back those that were.
            self._known[key] = self._predictor.predict(msgspec.structs.replace(key, **_ALL_MEASURED))
        return _for(self._known[key], record)

    def fitted(self, case: Case) -> bool:
        """Whether the calibration that predicted a run was fitted on it."""
        return bool(case.setup and fitted_run_ids([case.record], [self._predictor.profiles[case.prediction.profile]]))

    def case(self, record: RunRecord) -> Case:
        """A run beside our own simulation of it."""
        prediction = self.predict(record)
        return Case(record, prediction, simulated_record(prediction))

    def evidence(self, records: Iterable[RunRecord], source: str) -> Evidence:
        """What `validate` would look at if these runs were a file."""
        return self._again(Evidence(source, (), {}, frozenset()), [self.case(record) for record in records])

    def changed(self, evidence: Evidence, records: Mapping[str, RunRecord]) -> Evidence:
        """Other records in the place of those with these ids; predicted again only where a configuration changed.

        The figures of another simulator stay what its file says.
        """
        cases = [self._changed(evidence, c, records[c.id]) if c.id in records else c for c in evidence.cases]
        return self._again(evidence, cases)

    def added(self, evidence: Evidence, cases: Sequence[Case]) -> Evidence:
        """More runs at the end of the file."""
        return self._again(evidence, [*evidence.cases, *cases])

    def _changed(self, evidence: Evidence, case: Case, record: RunRecord) -> Case:
        if configured(record) == configured(case.record):
            return replace(case, record=record, prediction=_for(case.prediction, record))
        new = self.case(record)
        return new if evidence.own else replace(new, simulated=case.simulated)

    def _again(self, evidence: Evidence, cases: Sequence[Case]) -> Evidence:
        """These cases with the profiles that they used: what else was predicted before leaves no trace."""
        used, known = {case.prediction.profile for case in cases}, evidence.profiles | self._predictor.profiles
        profiles = {name: known[name] for name in known if name in used}
        fitted = fitted_run_ids((case.record for case in cases), profiles.values())
        return replace(with_cases(evidence, cases), profiles=profiles, fitted=frozenset(fitted))


def _for(prediction: Prediction, record: RunRecord) -> Prediction:
    """A prediction of the same configuration, for the metrics that this record measured."""
    measured = record.measured()
    values = {name: value for name, value in prediction.values.items() if name in measured}
    setup = prediction.setup
    if setup is not None:
        own = {name: getattr(record, name) for name in ("run_id", "rel_noise", *METRICS)}
        setup = replace(setup, record=msgspec.structs.replace(setup.record, **own))
    return replace(prediction, record=record, values=values, setup=setup)
