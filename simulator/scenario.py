"""One question from names to answer: an engine and a strategy put together and flown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from simulator.errors import UserError
from simulator.flight import collect_assumptions, fly
from simulator.instance import Instance, InstanceChoice, build_instance
from simulator.pricing import check_prices, price_of
from simulator.profile import Calibration, Operation, architecture_features
from simulator.result import Flight, SimulationResult
from simulator.strategies import Strategy, get_strategy

MAX_REPETITIONS = 100_000


@dataclass(frozen=True)
class Scenario(InstanceChoice):
    """What a user asks. Names and paths as typed; None means the default that the assumptions then state."""

    gpu: str
    strategy: str
    step_by_step: bool = False
    repetitions: int = 20
    seed: int = 0
    usd_per_hour: float | None = None
    usd_per_kwh: float | None = None
    strategy_parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.repetitions <= MAX_REPETITIONS:
            raise UserError(
                f"repetitions must be a whole number >= 1, at most {MAX_REPETITIONS:,}, got {self.repetitions}"
            )
        if self.seed < 0:
            raise UserError(f"seed must be a whole number >= 0, got {self.seed}")
        check_prices(usd_per_hour=self.usd_per_hour, usd_per_kwh=self.usd_per_kwh)


@dataclass(frozen=True)
class Setup(Instance):
    """A scenario with every name looked up and everything checked that can be checked before flying."""

    scenario: Scenario
    strategy: Strategy


def simulate_scenario(scenario: Scenario, progress: Callable[[int, int], None] | None = None) -> SimulationResult:
    """Answer `scenario`; `progress(done, total)` is called after every repetition. UserError on any bad input."""
    setup = prepare(scenario)
    flights = fly(
        setup.step_model,
        setup.memory,
        setup.settings,
        setup.strategy,
        scenario.strategy_parameters,
        scenario.repetitions,
        scenario.seed,
        step_by_step=scenario.step_by_step,
        progress=progress,
    )
    return _result(setup, flights)


def prepare(scenario: Scenario) -> Setup:
    """Look up and check everything that `scenario` names."""
    strategy = get_strategy(scenario.strategy)
    strategy.resolve(scenario.strategy_parameters)  # bad parameters are told before files are read
    found = build_instance(scenario)
    assumptions = (
        *found.assumptions,
        "nobody else uses the server",
        *(f"{strategy.name}: {line}" for line in collect_assumptions(strategy, scenario.strategy_parameters)),
    )
    return Setup(**{**vars(found), "assumptions": assumptions}, scenario=scenario, strategy=strategy)


def _result(setup: Setup, flights: tuple[Flight, ...]) -> SimulationResult:
    scenario, device, calibration = setup.scenario, setup.device, setup.calibration
    outside = extrapolations(setup, flights)
    price, price_notes = price_of(device, scenario.usd_per_hour, scenario.usd_per_kwh, setup.parallel.world_size)
    return SimulationResult(
        gpu=device.id,
        gpu_name=f"{setup.parallel.world_size} x {device.name}" if setup.parallel.world_size > 1 else device.name,
        power_mode=device.power_mode,
        model=setup.model.name,
        parameters=setup.model.parameters(),
        precision=setup.precision.to_dict(),
        strategy=setup.strategy.name,
        strategy_parameters=setup.strategy.plain(scenario.strategy_parameters),
        calibration=calibration_facts(calibration, outside),
        interval_log_sd=_spreads(calibration, outside, flights),
        memory={**asdict(setup.memory), "kv_capacity_tok": setup.memory.kv_capacity_tok},
        price=price,
        assumptions=(*setup.assumptions, *price_notes),
        seed=scenario.seed,
        flights=flights,
        version=installed_version(),
        power={
            "limit_w": device.power.limit_w * setup.parallel.world_size,
            "idle_w": setup.step_model.idle_power_w,
        },
        parallel=asdict(setup.parallel),
        settings={**asdict(setup.settings), "enforce_eager": scenario.enforce_eager},
    )


def extrapolations(setup: Setup, flights: tuple[Flight, ...]) -> tuple[str, ...]:
    """How the flights left the range that the calibration was fitted on, as sentences."""
    calls = [call for flight in flights for call in flight.calls]
    return setup.calibration.extrapolations(
        Operation(
            parameters=setup.model.parameters(),
            weights=setup.precision.weights,
            kv_cache=setup.precision.kv_cache,
            features=architecture_features(setup.model),
            cuda_graphs=setup.step_model.cuda_graphs,
            batch=max((flight.peak_running for flight in flights), default=0),
            context_tok=max((call.prompt_tok + call.output_tok for call in calls), default=0),
            prompt_tok=max((call.prompt_tok for call in calls), default=0),
            power_mode=setup.device.power_mode,
            tp=setup.parallel.tp,
        )
    )


def _spreads(calibration: Calibration, outside: tuple[str, ...], flights: tuple[Flight, ...]) -> dict[str, float]:
    """Standard deviations of log(measured / predicted) by kind of figure.

    The wall time's is blended of those of prefill and decode, by their shares of the calls that held up the end.
    """
    prefill_s = sum(call.first_token_s - call.scheduled_s for flight in flights for call in flight.critical_calls())
    wall_s = sum(flight.wall_s for flight in flights)
    share = min(1.0, prefill_s / wall_s) if wall_s > 0.0 else 0.0
    spreads = {kind: calibration.spread(kind, outside) for kind in ("ttft", "tpot", "power")}
    energy = calibration.blended_energy_spread(share, outside)
    return {"time": calibration.blended_spread(share, outside), "energy": energy, **spreads}


def calibration_status(calibration: Calibration) -> str:
    """ "fitted" on runs of this GPU, "borrowed" from a sibling's, or "defaults" without measured runs."""
    if calibration.fitted_on is None:
        return "defaults"
    return "borrowed" if calibration.transferred else "fitted"


def calibration_facts(calibration: Calibration, outside: tuple[str, ...]) -> dict[str, Any]:
    """What a result says about the calibration it rests on."""
    return {
        "id": calibration.id,
        "title": calibration.title,
        "engine": calibration.engine,
        "status": calibration_status(calibration),
        "source": calibration.source,
        "data_hash": calibration.data_hash,
        "power_scope": calibration.power_scope,
        "notes": list(calibration.notes),
        "extrapolated": list(outside),
        "variance_factor": round((calibration.spread("time", outside) / calibration.spread("time")) ** 2, 9),
    }


def installed_version() -> str:
    """Version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tokenflight")
    except PackageNotFoundError:  # run from an unpacked folder
        return "not installed"
