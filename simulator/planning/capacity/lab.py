"""Where candidates are put to the test: engines set up once, simulated under a load, held against the limits."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.errors import UserError
from simulator.instance import Instance, build_instance
from simulator.planning.capacity.bounds import (
    MARGIN,
    Alone,
    DemandModel,
    alone,
    bounding_limits,
    least_time_s,
    step_kinds,
)
from simulator.planning.capacity.candidates import Engine, Hardware, Space, Variant
from simulator.planning.capacity.limits import Limit, ratios
from simulator.planning.capacity.workload import Workload
from simulator.step_table import StepTable
from simulator.traffic.cluster import serve
from simulator.traffic.metrics import traffic_metrics, waiting_when_overloaded
from simulator.traffic.scenario import TrafficScenario, TrafficSetup, prepare_traffic

KEPT_SETUPS = 64
# A server that holds more than this share of a run's requests at once is mostly filling and emptying: the run is
# repeated with more of them.
LARGEST_BATCH_SHARE = 1 / 10
FIGURES = (
    "completed", "refused", "requests_per_s", "output_tok_per_s", "batch_mean", "busy_share", "kv_share_max",
    "preemptions", "mean_power_w", "energy_j_per_request", "energy_j_per_output_tok",
    "ttft_s_p50", "ttft_s_p90", "ttft_s_p99", "tpot_s_p50", "tpot_s_p90", "tpot_s_p99", "e2e_s_p50", "e2e_s_p90",
    "e2e_s_p99",
)  # fmt: skip
OVERLOAD = "the rate"  # what is missed when the queue grows all along


@dataclass(frozen=True)
class Trial:
    """One simulation: a variant with so many replicas, under `load` times the workload.

    ratios: value / limit by limit. missed: names of the limits that it misses, or OVERLOAD.
    """

    variant: Variant
    replicas: int
    load: float
    figures: Mapping[str, float]
    ratios: Mapping[str, float]
    missed: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Whether it keeps up with the load and meets every limit."""
        return not self.missed


@dataclass(frozen=True)
class Bound:
    """What pruning knows of a variant. rate_per_s: that one replica cannot exceed (of prefill: one that prefills)."""

    rate_per_s: float
    prefill_rate_per_s: float
    tightest: str  # what limits the rate: a limit's name, or OVERLOAD
    alone: Mapping[str, float]  # by limit: lower bound of its figure


class Lab:
    """Builds, bounds and simulates the candidates of a `Space` under a `Workload` and limits. Results are pure."""

    def __init__(self, space: Space, workload: Workload, limits: Sequence[Limit]) -> None:
        self.space, self.workload, self.limits = space, workload, tuple(limits)
        self._setups: OrderedDict[Variant, TrafficSetup] = OrderedDict()
        self._tables: OrderedDict[tuple, StepTable] = OrderedDict()
        self._demands: dict[tuple, DemandModel] = {}

    def __getstate__(self) -> dict:
        return {"space": self.space, "workload": self.workload, "limits": self.limits}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    @cached_property
    def key(self) -> str:
        """Names what this lab works on, for processes that keep one."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()

    # -- bounds ------------------------------------------------------------------------------------------------

    def instance(self, hardware: Hardware, engine: Engine) -> Instance:
        """One replica. UserError when the model cannot be split so, or does not fit."""
        traffic = self.workload
        lengths = traffic.prompt_tok + traffic.output_tok / 2.0
        held_tok = float(np.average(lengths, weights=traffic.output_tok))
        choice = self.space.instance_choice(hardware, engine)
        settings = dict(choice.engine_settings)
        asynchronous = settings.pop("async_scheduling", None)
        choice = replace(choice, engine_settings=settings)
        return build_instance(choice, served=True, async_scheduling=asynchronous, held_tok=held_tok)

    def bound(self, instance: Instance, prefill_replicas: int = 0) -> Bound:
        """Optimistic figures of one replica, see `simulator.planning.capacity.bounds`."""
        sequences, tokens = instance.settings.max_num_seqs, instance.settings.max_num_batched_tokens
        by_itself = alone(instance, self.workload, tokens)
        least = {limit.name: by_itself.figure(limit, self.workload.output_tok) for limit in self.limits}
        if prefill_replicas:
            decode, tightest = self._rate(instance, sequences, tokens, by_itself, prefill=False)
            prefill, _ = self._rate(instance, sequences, tokens, by_itself, decode=False)
            return Bound(decode, prefill, tightest, least)
        rate, tightest = self._rate(instance, sequences, tokens, by_itself)
        return Bound(rate, math.inf, tightest, least)

    def _rate(
        self, instance: Instance, sequences: int, tokens: int, by_itself: Alone, decode=True, prefill=True
    ) -> tuple[float, str]:
        """(requests per second, what limits them) of a replica that decodes, prefills or both."""
        model = self._demand_model(instance)

        def demand(share: float):
            found = model.of(share)
            return replace(found, decode_tok=found.decode_tok * decode, prefill_tok=found.prefill_tok * prefill)

        whole = demand(1.0)
        kinds = step_kinds(instance, whole, sequences, tokens, model.shared)
        slowest, tightest = least_time_s(kinds, whole), OVERLOAD
        for limit, share in bounding_limits(self.limits) if decode else ():
            part = whole if share == 1.0 else demand(share)
            own = kinds if share == 1.0 else step_kinds(instance, part, sequences, tokens, model.shared)
            seconds = least_time_s(own, part, limit, float(by_itself.ttft_s.min()))
            if seconds > slowest:
                slowest, tightest = seconds, limit.name
        return (1.0 + MARGIN) / slowest if slowest > 0.0 else math.inf, tightest

    def _demand_model(self, instance: Instance) -> DemandModel:
        rules = tuple(instance.step_model.rules)
        if rules not in self._demands:
            self._demands[rules] = DemandModel(self.workload, rules)
        return self._demands[rules]

    # -- simulation --------------------------------------------------------------------------------------------

    def setup(self, variant: Variant) -> TrafficSetup:
        """One replica of a variant as it serves. UserError when it cannot be built."""
        if variant not in self._setups:
            if len(self._setups) >= KEPT_SETUPS:
                self._setups.popitem(last=False)
            self._setups[variant] = self._set_up(variant)
        self._setups.move_to_end(variant)
        return self._setups[variant]

    def _set_up(self, variant: Variant) -> TrafficSetup:
        engine = variant.engine
        setup = prepare_traffic(
            TrafficScenario(
                **self.space.choice(*variant),
                traffic=self.workload.setup_traffic(),
                prefill_replicas=engine.prefill_replicas,
                kv_transfer_gb_per_s=self.space.kv_transfer_gb_per_s,
                usd_per_kwh=self.space.usd_per_kwh,
            )
        )
        # One table of step costs serves all settings that record the same graphs; no request is longer than these.
        physics = setup.instance.step_model
        key = (variant.hardware, physics.graphs, physics.micro_batch_tok if variant.hardware.pp > 1 else None)
        if key not in self._tables:
            if len(self._tables) >= KEPT_SETUPS:
                self._tables.popitem(last=False)
            self._tables[key] = StepTable(physics, self.workload.longest_tok + 1)
        return replace(setup, deployment=replace(setup.deployment, costs=self._tables[key]))

    def trial(self, variant: Variant, replicas: int, load: float = 1.0, slower: float = 1.0) -> Trial:
        """Simulate `replicas` replicas of a variant under `load` times the workload.

        slower: as if every step took so many times as long. Steps that are f times as long under a load are the same
        timeline as this one under f times the load, stretched by f: no further physics is needed.
        """
        figures = self._figures(variant, replicas, load * slower, enlarged=False)
        wanted = figures["batch_mean_each"] > LARGEST_BATCH_SHARE * self.workload.requests
        if wanted and not self.workload.clients and self.workload.arrival_s is None:
            figures = self._figures(variant, replicas, load * slower, enlarged=True)
        stretched = {
            name: value * slower if name.rpartition("_")[0].endswith("_s") else value for name, value in figures.items()
        }
        found = ratios(self.limits, stretched)
        missed = [name for name, ratio in found.items() if ratio > 1.0]
        if figures["overloaded"] or figures["refused"]:
            missed.append(OVERLOAD)
        kept = (*FIGURES, *(limit.figure for limit in self.limits))
        return Trial(variant, replicas, load, {name: stretched[name] for name in kept}, found, tuple(missed))

    def _figures(self, variant: Variant, replicas: int, load: float, enlarged: bool) -> dict[str, float]:
        """Figures of the whole deployment, from as many of its replicas as are simulated."""
        setup, workload = self.setup(variant), self.workload
        if variant.engine.prefill_replicas:
            part, traffic = replicas, workload.whole(load, enlarged)
        else:
            part, traffic = workload.simulated_replicas(replicas), workload.of_replicas(replicas, load, enlarged)
        served = serve(traffic, replace(setup.deployment, replicas=part))
        figures = traffic_metrics(served)
        for name in ("requests_per_s", "output_tok_per_s", "mean_power_w", "batch_mean"):
            figures[name] *= replicas / part
        figures["batch_mean_each"] = figures["batch_mean"] / replicas
        figures["overloaded"] = 0 if workload.clients else waiting_when_overloaded(served.requests)
        return figures

    def trial_result(self, variant: Variant, replicas: int):
        """The `TrafficResult` of what `trial` simulates, for its calibration, assumptions and intervals."""
        from simulator.traffic.scenario import _result

        setup = self.setup(variant)
        part = replicas if variant.engine.prefill_replicas else self.workload.simulated_replicas(replicas)
        traffic = self.workload.whole() if variant.engine.prefill_replicas else self.workload.of_replicas(replicas)
        return _result(setup, serve(traffic, replace(setup.deployment, replicas=part)))


_LABS: dict[str, Lab] = {}


def in_process(lab: Lab) -> Lab:
    """The lab of this process that works on the same, with everything that it has set up."""
    if lab.key not in _LABS:
        _LABS.clear()
        _LABS[lab.key] = lab
    return _LABS[lab.key]


def fits(lab: Lab, hardware: Hardware, engine: Engine) -> Instance | str:
    """One replica, or the sentence that says why there is none."""
    try:
        return lab.instance(hardware, engine)
    except UserError as error:
        return str(error)
