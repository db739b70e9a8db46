"""Capacity plans: optimistic bounds, a search that finds what brute force finds, margins, advice, measured runs."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_physics import Bent

from calibration.records import read_records
from calibration.setup import calibration_for, resolve, step_model
from simulator.errors import UserError
from simulator.planning.capacity.candidates import Engine, Hardware, Space, Variant
from simulator.planning.capacity.edge import EdgeSpace, plan_edge
from simulator.planning.capacity.lab import OVERLOAD, Lab
from simulator.planning.capacity.limits import parse_limits, ratios
from simulator.planning.capacity.margins import margin
from simulator.planning.capacity.plan import make_plan
from simulator.planning.capacity.search import DEAREST, search
from simulator.planning.capacity.served import Questions, plan_served
from simulator.planning.capacity.workload import closed_workload, open_workload, trace_workload
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.metrics import traffic_metrics
from simulator.workload.arrivals import Constant, Gamma, Piecewise, Poisson
from simulator.workload.loads import burst
from simulator.workload.traffic import Traffic

RUNS = Path(__file__).parent.parent / "calibration" / "data" / "runs" / "inferencex.csv"
SMALL = {"model": "qwen3-0.6b", "gpus": ("l4", "l40s", "a10g"), "tp": (1, 2), "replicas": (1, 2, 3, 4, 5, 6)}
PROMPT, OUTPUT = "lognormal:600:0.6", "lognormal:80:0.6"


def workload(rate: float, requests: int = 200, seed: int = 0):
    return open_workload(Poisson(rate), PROMPT, OUTPUT, requests, seed)


# -- limits and workloads --------------------------------------------------------------------------------------------


def test_limits_have_units_and_names():
    limits = parse_limits(["ttft_p99=2s", "TPOT-p90 = 50ms", "energy_per_request=0.1Wh"], "5kW")
    assert [(each.name, each.value) for each in limits] == [
        ("ttft_p99", 2.0), ("tpot_p90", 0.05), ("energy_per_answer", 360.0), ("power", 5000.0),
    ]  # fmt: skip
    assert ratios(limits[:1], {"ttft_s_p99": 3.0}) == {"ttft_p99": 1.5}
    assert ratios(limits[:1], {"ttft_s_p99": math.nan}) == {"ttft_p99": 0.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft_p99", "NAME=VALUE"), ("ttft_p98=1s", "nearest: ttft_p9"), ("ttft_p99=1", "with a unit"),
        ("ttft_p99=0s", "more than zero"), ("ttft_p99=-1s", "more than zero"), ("power=3s", "30W"),
        ("ttft_p99=nan s", "with a unit"), ("ttft_p99=1e999s", "with a unit"),
    ],
)  # fmt: skip
def test_bad_limits_are_told_in_one_sentence(text, says):
    with pytest.raises(UserError, match=says):
        parse_limits([text])
    with pytest.raises(UserError, match="twice"):
        parse_limits(["ttft_p50=1s", "ttft_p50=2s"])


@pytest.mark.parametrize(
    "process", [Poisson(20.0), Gamma(20.0, 0.5), Constant(20.0), Piecewise(((2.0, 10.0), (1.0, 30.0)))]
)
def test_one_replica_is_an_exact_part_of_all(process):
    asked = open_workload(process, PROMPT, OUTPUT, 60, 3)
    physics = StepTable(Bent(), 20_000)
    n = 3
    # All requests of three replicas, whose own third of them has the lengths of `of_replicas`.
    times = process.times(60 * n, np.random.default_rng([3, 1]))
    lengths = [np.repeat(x[:60], n) for x in (asked.prompt_tok, asked.output_tok)]
    base = Deployment(physics, Lab(Space(model="qwen3-0.6b", gpus=("l4",)), asked, ()).instance(
        Hardware("l4"), Engine()).settings, kv_blocks=4000, request_s=0.002)  # fmt: skip
    whole = serve(Traffic(*lengths, times), replace(base, replicas=n))
    part = serve(asked.of_replicas(n), base)
    np.testing.assert_allclose(whole.requests.finished_s[::n], part.requests.finished_s, rtol=1e-9)


def test_workloads_scale_with_load_and_refuse_bursts():
    asked = workload(10.0)
    np.testing.assert_allclose(asked.of_replicas(2, 2.0).arrival_s * 2.0, asked.of_replicas(2).arrival_s)
    assert replace(asked, reserve=1.5).planned_rate_per_s == pytest.approx(15.0)
    assert closed_workload(12, PROMPT, OUTPUT, 200).of_replicas(5).clients == 3
    times = np.cumsum(np.ones(3000))
    traced = trace_workload(Traffic(np.full(3000, 10), np.full(3000, 5), times))
    assert traced.simulated_replicas(2) == 1 and traced.simulated_replicas(9) == 3
    assert len(traced.of_replicas(9)) == 3 * 334
    with pytest.raises(UserError, match="at once"):
        trace_workload(Traffic(np.full(3, 10), np.full(3, 5), np.zeros(3)))


class Slowed(Bent):
    """Every step takes `factor` times as long."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def price(self, steps):
        cost = super().price(steps)
        return replace(cost, seconds=self.factor * cost.seconds)


def test_slower_steps_are_the_same_timeline_stretched():
    factor = 1.7
    lengths = burst(150, PROMPT, OUTPUT, np.random.default_rng(1))
    times = Poisson(8.0).times(150, np.random.default_rng(2))
    engine = Lab(Space(model="qwen3-0.6b", gpus=("l4",)), workload(1.0), ()).instance(Hardware("l4"), Engine()).settings

    def figures(scale: float, load: float):
        costs = StepTable(Slowed(scale), 20_000)
        traffic = Traffic(lengths.prompt_tok, lengths.output_tok, times / load)
        return traffic_metrics(serve(traffic, Deployment(costs, engine, kv_blocks=4000)))

    slow, fast = figures(factor, 1.0), figures(1.0, factor)
    for name in ("ttft_s_p99", "tpot_s_p50", "e2e_s_p90"):
        assert slow[name] == pytest.approx(factor * fast[name], rel=1e-6)


# -- bounds ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    gpu=st.sampled_from(("l4", "h100-sxm", "a100-sxm-80gb", "rtx-4090")),
    model=st.sampled_from(("qwen3-0.6b", "llama-3.1-8b", "gpt-oss-20b", "gemma-3-4b")),
    tp=st.sampled_from((1, 2)),
    sequences=st.sampled_from((8, 64, 256)),
    tokens=st.sampled_from((512, 2048, 8192)),
    prompt=st.sampled_from(("64", "uniform:200:2000", "lognormal:1500:0.8")),
    output=st.sampled_from(("2", "uniform:20:200", "lognormal:150:0.8")),
)
def test_no_server_beats_the_bound_of_its_capacity(gpu, model, tp, sequences, tokens, prompt, output):
    asked = open_workload(Poisson(1.0), prompt, output, 100)
    lab = Lab(Space(model=model, gpus=(gpu,)), asked, ())
    hardware, engine = Hardware(gpu, tp), Engine(sequences, tokens)
    bound = lab.bound(lab.instance(hardware, engine))
    everything = Traffic(asked.prompt_tok, asked.output_tok, np.zeros(len(asked.prompt_tok)))
    served = serve(everything, lab.setup(Variant(hardware, engine)).deployment)
    assert len(everything) / served.end_s <= bound.rate_per_s


@settings(max_examples=8, deadline=None)
@given(
    gpu=st.sampled_from(("l4", "l40s")),
    rate=st.floats(0.5, 20.0),
    limit=st.sampled_from(("tpot_p99", "tpot_p50", "e2e_p90", "ttft_p50", "itl_p99", "e2e_mean")),
    seed=st.integers(0, 50),
)
def test_no_run_is_better_than_its_bounds(gpu, rate, limit, seed):
    """A limit at what a run reached may neither be ruled out for times alone nor for the rate."""
    lab = Lab(Space(model="qwen3-0.6b", gpus=(gpu,)), workload(rate, 150, seed), parse_limits([f"{limit}=1s"]))
    variant = Variant(Hardware(gpu), Engine(64, 2048))
    trial = lab.trial(variant, 1)
    reached = trial.figures[lab.limits[0].figure]
    lab.limits = (replace(lab.limits[0], value=reached),)
    bound = lab.bound(lab.instance(*variant))
    assert bound.alone[limit] <= reached
    if OVERLOAD not in trial.missed and trial.figures["busy_share"] < 0.95:
        assert bound.rate_per_s >= rate


# -- the search ------------------------------------------------------------------------------------------------------


def brute_force(lab: Lab) -> dict[tuple, float]:
    """(hardware, engine, replicas) -> price of every candidate that holds, all of them simulated."""
    found = {}
    for variant in itertools.starmap(Variant, itertools.product(lab.space.hardware, lab.space.engines)):
        try:
            lab.setup(variant)
        except UserError:
            continue
        for n in lab.space.allowed(variant):
            trial = lab.trial(variant, n)
            if trial.met:
                found[variant, n] = lab.space.usd_per_h(variant, n, trial.figures["mean_power_w"])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_pruning_never_discards_the_optimum(seed):
    rng = np.random.default_rng(seed)
    rate = float(rng.uniform(2.0, 60.0))
    texts = [f"ttft_p99={rng.uniform(0.15, 1.5):.3f}s", f"tpot_p{rng.choice([50, 90, 99])}={rng.uniform(5, 30):.1f}ms"]
    texts += [f"e2e_p90={rng.uniform(0.6, 3.0):.2f}s"] if seed % 2 else []
    space = Space(
        model="qwen3-0.6b",
        gpus=tuple(rng.choice(["l4", "l40s", "a10g", "rtx-4090", "h100-sxm"], 2, replace=False).tolist()),
        tp=(1, 2) if seed % 3 else (1,),
        weights=("bf16", "fp8") if seed % 4 == 0 else (None,),
        max_num_seqs=(8, 64),
        max_num_batched_tokens=(1024,),
        replicas=(1, 2, 3, 5),
        max_devices=int(rng.integers(4, 9)),
        prefill_replicas=(0, 1) if seed == 5 else (0,),
        kv_transfer_gb_per_s=20.0 if seed == 5 else None,
    )
    lab = Lab(space, workload(rate, 120, seed), parse_limits(texts))
    every, found = brute_force(lab), search(lab)
    assert sum(found.total().values()) == len(space)
    if not every:
        assert not found.confirmed
        return
    best = min(every.values())
    assert found.confirmed[0].usd_per_h == pytest.approx(best, rel=1e-9)
    ties = {variant for (variant, n), price in every.items() if price <= best * (1 + 1e-9)}
    assert {each.variant for each in found.ties} == ties
    # So are the runners-up: the cheapest of each hardware, in order.
    by_hardware: dict[Hardware, float] = defaultdict(lambda: math.inf)
    for (variant, _), price in every.items():
        by_hardware[variant.hardware] = min(by_hardware[variant.hardware], price)
    wanted = sorted(price for price in by_hardware.values() if price <= DEAREST * best)[:5]
    prices = [each.usd_per_h for each in found.confirmed]
    assert prices == pytest.approx(wanted, rel=1e-9)
    assert found.simulations < len(space)


def test_the_answer_is_the_same_on_two_processes():
    asked, limits = workload(30.0, 100), parse_limits(["ttft_p99=300ms"])
    space = Space(**{**SMALL, "gpus": ("l4", "l40s"), "tp": (1,)})
    one, two = (make_plan(space, asked, limits, jobs, finalists=1).to_dict() for jobs in (1, 2))
    assert one == two and one["feasible"]


def test_a_plan_tells_margins_that_simulations_confirm():
    limits = parse_limits(["ttft_p99=300ms", "tpot_p99=12ms"])
    asked = workload(40.0)
    space = Space(**SMALL, max_num_seqs=(32, 128))
    plan = make_plan(space, asked, limits, finalists=2)
    best, lab = plan.best, Lab(Space(**SMALL), asked, limits)
    assert best is not None and best.margin.binding in ("ttft_p99", "tpot_p99", OVERLOAD)
    assert lab.trial(best.variant, best.replicas, best.margin.head_room).met
    assert not lab.trial(best.variant, best.replicas, 1.05 * best.margin.head_room).met
    assert best.usd_per_request == pytest.approx(best.usd_per_h / 3600.0 / 40.0)
    assert best.usd_per_million_output_tok == pytest.approx(best.usd_per_request / asked.output_tok[:200].mean() * 1e6)
    assert 0.5 <= best.chance.probability <= 1.0 and best.chance.slowest_factor >= 1.0
    assert best.rate_per_replica <= best.bound_rate
    assert "vllm serve Qwen/Qwen3-0.6B --tensor-parallel-size" in best.command.line
    assert all(each.usd_per_h >= best.usd_per_h and each.why_lost for each in plan.options[1:])
    reserved = make_plan(space, replace(asked, reserve=1.5), limits, finalists=1)
    assert reserved.best.usd_per_h >= best.usd_per_h and reserved.best.margin.head_room >= 1.5


def test_infeasible_requests_say_what_would_do():
    space, asked = Space(**SMALL), workload(20.0)
    limits = parse_limits(["ttft_p99=10ms", "e2e_p99=60s"])
    plan = make_plan(space, asked, limits)
    assert plan.best is None and plan.by_limit["ttft_p99"] > 0 and plan.simulations == 0
    advice = plan.relaxations[0]
    assert set(advice.limits) == {"ttft_p99"} and "ttft_p99" in advice.sentence(limits)
    wider = [replace(each, value=advice.limits.get(each.name, each.value)) for each in limits]
    assert make_plan(space, asked, wider).best.usd_per_h <= advice.usd_per_h * (1 + 1e-9)


def test_too_few_replicas_say_how_many_would_do():
    space = Space(model="qwen3-0.6b", gpus=("l4",), tp=(1,), replicas=(1, 2))
    plan = make_plan(space, workload(150.0), parse_limits(["ttft_p99=2s"]))
    assert plan.best is None
    (advice,) = [each for each in plan.relaxations if not each.limits]
    assert advice.replicas > 2 and f"{advice.replicas} replicas" in advice.sentence(())
    enough = replace(space, replicas=(advice.replicas,))
    assert make_plan(enough, workload(150.0), parse_limits(["ttft_p99=2s"])).best is not None


def test_what_does_not_fit_says_so():
    plan = make_plan(Space(model="llama-3.1-70b", gpus=("l4",), tp=(1, 2)), workload(1.0), ())
    assert plan.best is None and not plan.relaxations
    assert "does not fit" in plan.does_not_fit[0] and plan.reasons == {"does not fit": 2 * 16}


def test_prices_are_needed_and_can_be_given():
    with pytest.raises(UserError, match="--price b300-sxm=USD"):
        make_plan(Space(model="qwen3-0.6b", gpus=("b300-sxm",)), workload(1.0), ())
    space = Space(model="qwen3-0.6b", gpus=("l4", "l40s"), tp=(1,), usd_per_hour={"l40s": 0.01})
    assert make_plan(space, workload(1.0), ()).best.variant.hardware.gpu == "l40s"


def test_head_room_without_bound_is_told_as_such():
    lab = Lab(Space(model="qwen3-0.6b", gpus=("h100-sxm",)), workload(0.01, 100), parse_limits(["power=10kW"]))
    found = margin(lab, lab.trial(Variant(Hardware("h100-sxm"), Engine()), 1), most=2.0)
    assert found.head_room == 2.0 and found.binding is None


# -- strategies ------------------------------------------------------------------------------------------------------


def edge_space(**more):
    return EdgeSpace(
        gpus=("orin",), strategy="pdr", models=("qwen3-0.6b", "qwen3-1.7b"), weights=("int4",),
        power_modes=("MAXN", "30W"), parameters={"width": ("2", "4"), "thinking_tok": ("64",)}, repetitions=1, **more,
    )  # fmt: skip


def test_the_edge_keeps_time_and_power_and_ranks_the_rest():
    limits = parse_limits(["wall_p90=40s"], "30W", strategy=True)
    plan = plan_edge(edge_space(), limits)
    assert plan.objective == "compute" and plan.candidates == 2 * 2 * 2
    assert all(o.figures["wall_s_p90"] <= 40.0 and o.figures["power_w"] <= 30.0 for o in plan.options)
    scores = [option.figures["compute_flop"] for option in plan.options]
    assert scores == sorted(scores, reverse=True)
    energies = [option.figures["energy_j_mean"] for option in plan_edge(edge_space(), limits, "energy").options]
    assert energies == sorted(energies) and energies[0] <= plan.best.figures["energy_j_mean"]
    impossible = plan_edge(edge_space(), parse_limits(["wall_p90=1s"], strategy=True))
    assert impossible.best is None and "wall_p90" in impossible.relaxations[0]


def test_edge_objectives_are_checked():
    with pytest.raises(UserError, match="--accuracy"):
        plan_edge(edge_space(), (), "accuracy")
    with pytest.raises(UserError, match="speed"):
        plan_edge(edge_space(), (), "speed")


def test_questions_per_hour_get_the_cheapest_servers():
    space = Space(model="qwen3-0.6b", gpus=("l4", "l40s"), tp=(1,), max_num_seqs=(8,), replicas=(1, 2, 3, 4, 5, 6))
    limits = parse_limits(["wall_p90=60s"], strategy=True)
    asked = Questions("self_consistency", 0.2, {"samples": "2"})
    plan = plan_served(space, asked, limits)
    best = plan.best
    assert best.met and best.figures["head_room"] >= 1.0
    assert best.usd_per_h == min(option.usd_per_h for option in plan.options)
    assert best.figures["questions_per_s_each"] * best.replicas >= 0.2
    nothing = plan_served(space, asked, parse_limits(["wall_p90=1s"], strategy=True))
    assert nothing.best is None and "wall_p90" in nothing.relaxations[0]


# -- measured runs ---------------------------------------------------------------------------------------------------

LIMITS_S = [1e-3 * x for x in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 25, 30, 40)]
BUSY = 16  # requests at once: below, TPOT hardly depends on load, and a per cent of it is a large share of the capacity


class MeasuredLab(Lab):
    """A lab whose engine is that of measured runs: sampler, kernels and recorded graphs as their records say."""

    engine = None

    def setup(self, variant):
        if self.engine is None:
            found, physics = self.measured, step_model(self.measured, calibration_for(self.measured))
            costs, overheads = StepTable(physics, 20_000), physics.calibration.parameters.engine
            engine = replace(found.settings, max_num_seqs=max(256, found.settings.max_num_seqs))
            self.engine = SimpleNamespace(
                deployment=Deployment(
                    costs, engine, found.kv_blocks, async_scheduling=found.async_scheduling,
                    request_s=overheads.request_s, prompt_tok_s=overheads.prompt_tok_s,
                )
            )  # fmt: skip
        return self.engine


def measured_series():
    """Runs that differ in the number of clients alone: lists of (record, setup), at least three numbers of clients."""
    found = defaultdict(list)
    for record in read_records(RUNS):
        if record.source == "inferencex" and not any(f.startswith(("suspect", "ambiguous")) for f in record.flag_list):
            setup = resolve(record)
            key = (setup.device.id, record.model, setup.parallel, setup.precision, setup.family.id, setup.version)
            found[*key, record.input_tok, record.output_tok].append((record, setup))
    return [runs for runs in found.values() if len({record.concurrency for record, _ in runs}) >= 3]


def measured_curve(runs):
    """(clients, TPOT [s], requests per second) by clients; the mean of equal ones."""
    rows = defaultdict(list)
    for record, _ in runs:
        e2e_s = record.ttft_s_mean + record.tpot_s_mean * (record.output_tok - 1)
        rows[record.concurrency].append((record.tpot_s_mean, record.concurrency / e2e_s))
    clients = sorted(rows)
    return np.array(clients), *np.array([np.mean(rows[c], axis=0) for c in clients]).T


def planned_rate(lab: MeasuredLab, limit_s: float) -> tuple[float, int]:
    """(requests per second, clients) that the plan's simulations allow within a mean TPOT."""
    lab.limits = tuple(parse_limits([f"tpot_mean={limit_s}s"]))
    clients, variant = lab.workload.clients, Variant(Hardware("measured"), Engine())
    low, high = 0, clients + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lab.trial(variant, 1, middle / clients).met else (low, middle)
    ends = [lab.trial(variant, 1, n / clients).figures for n in (max(low, 1), min(low + 1, clients))]
    tpot, rate = ([f[name] for f in ends] for name in ("tpot_s_mean", "requests_per_s"))
    return float(np.interp(limit_s, tpot, rate)), low


@pytest.mark.slow
def test_plans_agree_with_measured_capacity():
    """Closed loops of InferenceX: the highest throughput within a TPOT, between measured rows and by the plan.

    The profiles were fitted on these very runs: this is how well the plan uses them, not what to expect of others.
    """
    errors, loaded = [], []
    for runs in measured_series():
        clients, tpot_s, rate = measured_curve(runs)
        if (np.diff(tpot_s) <= 0.0).any():
            continue  # TPOT that falls with load has no capacity at a limit
        record, setup = runs[-1]
        lengths = (f"ratio:{round(x / 0.9)}:0.8" for x in (record.input_tok, record.output_tok))
        asked = closed_workload(2 * int(clients[-1]), *lengths, requests=100)
        lab = MeasuredLab(Space(model=record.model, gpus=(setup.device.id,)), asked, ())
        lab.measured = setup
        for limit_s in (x for x in LIMITS_S if tpot_s[0] <= x <= tpot_s[-1]):
            measured = np.exp(np.interp(np.log(limit_s), np.log(tpot_s), np.log(rate)))
            error = planned_rate(lab, limit_s)[0] / measured - 1.0
            errors.append(error)
            if np.interp(limit_s, tpot_s, clients) >= BUSY:
                loaded.append(error)
    for name, values in (("all", errors), (f"{BUSY} requests at once or more", loaded)):  # pytest -s shows it
        sizes = np.abs(values)
        within, p90 = np.mean(sizes <= 0.15), np.quantile(sizes, 0.9)
        print(f"{name}: n {len(values)}, bias {np.mean(values):+.1%}, median {np.median(sizes):.1%}, p90 {p90:.1%}, "
              f"within 15 %: {within:.0%}")  # fmt: skip
    assert len(errors) >= 100
    assert np.median(np.abs(loaded)) <= 0.15 and np.median(np.abs(errors)) <= 0.2
    assert abs(np.mean(loaded)) <= 0.1
