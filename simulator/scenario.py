"""One question from names to answer: an engine and a strategy put together and flown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from simulator.crew import Cast, build_cast
from simulator.errors import UserError
from simulator.flight import collect_assumptions, fly
from simulator.idealized import idealized, idealized_flight
from simulator.instance import Instance, InstanceChoice, build_instance
from simulator.pricing import check_prices, price_of
from simulator.profile import Calibration, Operation, architecture_features
from simulator.questions import Questions
from simulator.result import Flight, SimulationResult
from simulator.schedule.files.schedule import load_schedule
from simulator.schedule.run import Run
from simulator.strategies import Parameter, Strategy, get_strategy
from simulator.strategies.from_file import mistakes_told
from simulator.strategies.registry import COMMON
from simulator.workload.lengths import read_lengths

MAX_REPETITIONS = 100_000
MAX_REPLICAS = 64


@dataclass(frozen=True)
class Scenario(InstanceChoice):
    """What a user asks. Names and paths as typed; None means the default that the assumptions then state."""

    gpu: str
    strategy: str | None = None  # a name or a Python file; None with a schedule
    schedule: str | None = None  # a schedule file instead of a strategy
    save_schedule: str | None = None  # where the first repetition's schedule goes
    roles: tuple[str, ...] = ()  # NAME=MODEL[@GPU]: who plays the strategy's roles
    replicas: int = 1  # engines with the main model
    questions: int | None = None  # work on so many instead of one
    question_lengths: str | None = None  # a file of their prompt tokens
    concurrency: int | None = None  # questions at a time; None: all
    idealized: bool = False
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
        if (self.strategy is None) == (self.schedule is None):
            raise UserError("expected a strategy or a schedule, and not both")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise UserError(f"replicas must be a whole number from 1 to {MAX_REPLICAS}, got {self.replicas}")
        if self.seed < 0:
            raise UserError(f"seed must be a whole number >= 0, got {self.seed}")
        check_prices(usd_per_hour=self.usd_per_hour, usd_per_kwh=self.usd_per_kwh)


@dataclass(frozen=True)
class Setup(Instance):
    """A scenario with every name looked up and everything checked that can be checked before flying."""

    scenario: Scenario
    strategy: Strategy
    cast: Cast
    questions: Questions | None


def simulate_scenario(scenario: Scenario, progress: Callable[[int, int], None] | None = None) -> SimulationResult:
    """Answer `scenario`; `progress(done, total)` is called after every repetition. UserError on any bad input."""
    setup = prepare(scenario)
    with mistakes_told(scenario.strategy):
        flights = _fly(setup, progress)
    return _result(setup, flights)


def _fly(setup: Setup, progress: Callable[[int, int], None] | None) -> tuple[Flight, ...]:
    scenario = setup.scenario
    return fly(
        setup.step_model,
        setup.memory,
        setup.settings,
        setup.strategy,
        scenario.strategy_parameters,
        scenario.repetitions,
        scenario.seed,
        step_by_step=scenario.step_by_step,
        progress=progress,
        replicas=scenario.replicas,
        roles=setup.cast.crews(),
        questions=setup.questions,
        on_first=None if scenario.save_schedule is None else lambda run: _save(setup, run),
    )


def _save(setup: Setup, run: Run) -> None:
    """Write what the first repetition did as a schedule."""
    from simulator.schedule.files.save import save_schedule

    strategy, values = setup.strategy, setup.strategy.plain(setup.scenario.strategy_parameters)
    about = f"{strategy.title}, as flown with seed {setup.scenario.seed}: " + ", ".join(
        f"{name} {value}" for name, value in values.items()
    )
    save_schedule(run, setup.scenario.save_schedule, name=strategy.name, about=about, streams=setup.step_model.streams)


def prepare(scenario: Scenario) -> Setup:
    """Look up and check everything that `scenario` names."""
    strategy = get_strategy(scenario.strategy) if scenario.schedule is None else _of_schedule(scenario.schedule)
    values = strategy.resolve(scenario.strategy_parameters)  # bad parameters are told before files are read
    questions = _questions(scenario, strategy)
    streams = 1 if strategy.streams is None else values[strategy.streams]
    found = build_instance(scenario, diffusion=strategy.diffusion, streams=streams)
    cast = build_cast(scenario.roles, strategy, scenario, found)
    assumptions = (
        *found.assumptions,
        *cast.assumptions,
        *_set_notes(scenario, questions, strategy),
        "nobody else uses the server",
        *(f"{strategy.name}: {line}" for line in collect_assumptions(strategy, scenario.strategy_parameters)),
    )
    known = {**vars(found), "assumptions": assumptions, "memory": cast.main_memory}
    return Setup(**known, scenario=scenario, strategy=strategy, cast=cast, questions=questions)


def _of_schedule(path: str) -> Strategy:
    """A schedule file as a strategy: its calls as they stand there, and nothing that could be set."""
    found = load_schedule(path)
    problem = replace(COMMON[0], default=found.problem_tok, origin=f"{path} says so", published=True)
    streams = Parameter("streams", "int", found.streams, "parallel streams of the model", True, f"{path} says so")
    fixed = () if found.random else (f"{path} leaves nothing to chance, so that all repetitions are the same",)
    return Strategy(
        name=found.name,
        title=f"schedule from {path}",
        source=path,
        description=found.about,
        parameters=(problem, streams) if found.streams > 1 else (problem,),
        assumptions=fixed,
        aliases=(),
        function=lambda run, **_: found.replay(run),
        roles=dict.fromkeys(found.roles, "as the schedule says"),
        streams="streams" if found.streams > 1 else None,
        diffusion=found.diffusion,
    )


def _questions(scenario: Scenario, strategy: Strategy) -> Questions | None:
    """The questions that are asked for; those of a strategy that needs a set, if nobody asks for any."""
    tokens = None
    if scenario.question_lengths is not None:
        if "problem_tok" in scenario.strategy_parameters:
            raise UserError("question_lengths and problem_tok both say how long the questions are: give one of them")
        tokens = read_lengths(scenario.question_lengths).tokens
        if scenario.questions is not None and scenario.questions > len(tokens):
            raise UserError(
                f"questions: found {scenario.questions}, but {scenario.question_lengths} has the lengths of "
                f"{len(tokens)}"
            )
        tokens = tokens[: scenario.questions]
    asked = strategy.questions if scenario.questions is None else scenario.questions
    number = asked if tokens is None else len(tokens)
    if scenario.concurrency is not None and strategy.questions is not None:
        raise UserError(f"strategy '{strategy.name}' works on all questions at once; expected no concurrency")
    if scenario.concurrency is not None and number is None:
        raise UserError("concurrency says how many questions are worked on at a time; it needs questions")
    if number is None:
        return None
    if scenario.save_schedule is not None and number > 1 and strategy.questions is None:
        raise UserError(
            f"save_schedule writes what one question does; found {number} questions, expected a flight without them"
        )
    return Questions(number, scenario.concurrency, tokens)


def _set_notes(scenario: Scenario, questions: Questions | None, strategy: Strategy) -> tuple[str, ...]:
    notes = []
    if questions is not None:
        how = "decided on together" if strategy.questions is not None else "all at once"
        how = f"{questions.concurrency} at a time" if questions.concurrency else how
        notes.append(f"{questions.number} questions on the same engines, {how}")
    if scenario.replicas > 1:
        notes.append(
            f"{scenario.replicas} engines with the main model, each on a GPU of its own: a call goes to the one with "
            "the fewest calls, of these to the one that has cached most of its prompt"
        )
    return tuple(notes)


def _result(setup: Setup, flights: tuple[Flight, ...]) -> SimulationResult:
    scenario, device, calibration = setup.scenario, setup.device, setup.calibration
    outside = extrapolations(setup, flights)
    price, price_notes = _price(setup)
    devices = setup.parallel.world_size * scenario.replicas
    others = [setup.cast.instances[role] for role, own in setup.cast.own_gpu.items() if own]
    return SimulationResult(
        gpu=device.id,
        gpu_name=f"{devices} x {device.name}" if devices > 1 else device.name,
        other_gpus=tuple(other.device.name for other in others),
        power_mode=device.power_mode,
        model=setup.model.name,
        parameters=setup.model.parameters(),
        precision=setup.precision.to_dict(),
        strategy=setup.strategy.name,
        strategy_parameters=setup.strategy.plain(scenario.strategy_parameters),
        calibration=calibration_facts(calibration, outside),
        interval_log_sd=_spreads(calibration, outside, flights),
        memory={
            **asdict(setup.memory),
            "kv_capacity_tok": setup.memory.kv_capacity_tok,
            "roles_byte": _roles_byte(setup, flights),
        },
        price=price,
        assumptions=(*setup.assumptions, *price_notes),
        seed=scenario.seed,
        flights=flights,
        version=installed_version(),
        power={
            "limit_w": device.power.limit_w * devices + sum(other.device.power.limit_w for other in others),
            "idle_w": setup.step_model.idle_power_w * scenario.replicas
            + sum(other.step_model.idle_power_w for other in others),
        },
        parallel=asdict(setup.parallel),
        settings={**asdict(setup.settings), "enforce_eager": scenario.enforce_eager},
        idealized=_idealized(setup, flights) if scenario.idealized else {},
    )


def _idealized(setup: Setup, flights: tuple[Flight, ...]) -> dict[str, float]:
    """Idealized runtime (arXiv:2305.02440) of the flights, medians; see `simulator.idealized`."""
    runtime = idealized(setup.step_model)
    others = {role: idealized(found.step_model) for role, found in setup.cast.instances.items()}
    found = [idealized_flight(flight, runtime, others) for flight in flights]
    return {
        "critical_path_s_p50": float(np.median([each.critical_path_s for each in found])),
        "all_calls_s_p50": float(np.median([each.all_calls_s for each in found])),
        "accelerator_s_p50": float(np.median([each.accelerator_s for each in found])),
        "output_tok_s": runtime.output_tok_s,
        "prompt_512_tok_s": runtime.prompt_runtime(512),
    }


def _roles_byte(setup: Setup, flights: tuple[Flight, ...]) -> float:
    """What the models of roles take on the GPU of the main one: weights, activations, overhead, KV at its fullest."""
    total = 0.0
    for role, found in setup.cast.instances.items():
        if not setup.cast.own_gpu[role]:
            memory = found.memory
            peaks = [use.peak_kv_tok for flight in flights for use in flight.engines if use.engine == role]
            total += memory.weights_byte + memory.activation_byte + memory.overhead_byte
            total += memory.kv_byte_per_tok * max(peaks, default=0)
    return total


def _price(setup: Setup) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What an hour of all GPUs costs; a role's GPU at the price of its own data sheet."""
    scenario, devices = setup.scenario, setup.parallel.world_size * setup.scenario.replicas
    price, notes = price_of(setup.device, scenario.usd_per_hour, scenario.usd_per_kwh, devices)
    for role, own in setup.cast.own_gpu.items():
        if own:
            other, _ = price_of(setup.cast.instances[role].device, None, scenario.usd_per_kwh)
            price["usd_per_hour"] += other["usd_per_hour"]
            price["basis"] += f"; {role}: {other['basis']}"
            notes = (*notes, f"cost of the GPU of role '{role}': {other['basis']}")
    return price, notes


def extrapolations(setup: Setup, flights: tuple[Flight, ...]) -> tuple[str, ...]:
    """How the flights left the range that the calibration was fitted on, as sentences."""
    calls = [call for flight in flights for call in flight.calls if call.engine not in setup.cast.instances]
    known = setup.calibration.extrapolations(
        Operation(
            parameters=setup.model.parameters(),
            weights=setup.precision.weights,
            kv_cache=setup.precision.kv_cache,
            features=(*architecture_features(setup.model), *_unmeasured_features(setup)),
            cuda_graphs=setup.step_model.cuda_graphs,
            batch=max((flight.peak_running for flight in flights), default=0),
            context_tok=max((call.prompt_tok + call.output_tok for call in calls), default=0),
            prompt_tok=max((call.prompt_tok for call in calls), default=0),
            power_mode=setup.device.power_mode,
            tp=setup.parallel.tp,
        )
    )
    if setup.calibration.fitted_on is not None and any(flight.joins_kv for flight in flights):
        known += ("calls that attend to other calls' KV; fitted on runs without such calls",)
    return known


def _unmeasured_features(setup: Setup) -> tuple[str, ...]:
    """What the strategy needs of a model and no calibration has seen."""
    found = {"full passes over whole texts": setup.model.diffusion, "parallel streams": setup.step_model.streams > 1}
    return tuple(name for name, present in found.items() if present)


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
