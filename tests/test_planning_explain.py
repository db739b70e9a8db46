"""Laws of `--explain`: parts sum to their totals, changes have the right sign, and explaining changes nothing."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.batch import Batch, PrefillChunk
from simulator.cli.main import simulate
from simulator.errors import UserError
from simulator.instance import InstanceChoice, build_instance
from simulator.keys import KeyRule
from simulator.planning.explain import flights as flying
from simulator.planning.explain import traffic as explaining
from simulator.planning.explain.accounts import CAUSES, STEP_PARTS, Meter
from simulator.planning.explain.faster import HARDWARE, RESOURCES, faster_instance
from simulator.planning.explain.flights import explain_flights
from simulator.planning.explain.floor import floor_of
from simulator.planning.explain.sensitivity import Trial, more_seats, tried
from simulator.planning.explain.served import _work
from simulator.planning.explain.tokens import Scaled, shorter_strategy, shorter_traffic
from simulator.planning.explain.traffic import explain_traffic
from simulator.planning.explain.watch import Diary, watched
from simulator.report.explain_text import render_explanation
from simulator.report.waterfall_plot import draw_waterfall, shown_parts
from simulator.scenario import Scenario, prepare, simulate_scenario
from simulator.steps import Steps
from simulator.traffic.scenario import SpeculativeSettings, TrafficScenario, prepare_traffic, simulate_traffic
from simulator.workload.lengths import parse_lengths
from simulator.workload.traffic import Traffic

SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
EIGHT = "meta-llama/Llama-3.1-8B-Instruct"
REL = 1e-9


def flight(**asked):
    """A short scenario."""
    return Scenario(**{"gpu": "orin", "model": SMALL, "strategy": "pdr", "repetitions": 3, **asked})


def traffic(n=40, rate=20.0, clients=0, prompt=200, output=40, **more):
    """n requests, evenly spread around the given lengths."""
    rng = np.random.default_rng(7)
    arrival = None if clients else np.sort(rng.uniform(0.0, n / rate, n))
    lengths = [rng.integers(mean // 2, mean + mean // 2, n) for mean in (prompt, output)]
    return Traffic(*lengths, arrival_s=arrival, clients=clients, title="made up", **more)


def server(what=None, **asked):
    """The same for traffic."""
    return TrafficScenario(**{"gpu": "h100", "model": EIGHT, "traffic": what or traffic(), **asked})


def changes(explanation, figure=None):
    """name -> change of the time, or of a figure."""
    name = figure or explanation.figures[0]
    return {each.name: each.changes[name] for each in explanation.sensitivities if not each.reason}


def assert_sums(explanation):
    for split in (explanation.ladder, explanation.causes, explanation.energy, *explanation.further):
        assert sum(part.value for part in split.parts) == pytest.approx(split.total, rel=REL)
        assert sum(split.shares().values()) == pytest.approx(1.0, rel=REL)
        for part in split.parts:
            assert part.value >= -REL * split.total or part.name == "attention"  # may be served from the L2
            inside = [named[part.name] for named in split.by_phase.values() if part.name in named]
            if inside and part.name != "idle":
                assert sum(inside) == pytest.approx(part.value, rel=REL, abs=REL * split.total)


# -- one step --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def meters():
    """Of a dense model on one GPU and on four, of a mixture of experts, of recurrent state, under a power cap."""
    choices = (
        {"gpu": "h100", "model": EIGHT},
        {"gpu": "h100", "model": EIGHT, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "weights": "fp8"},
        {"gpu": "h100", "model": "Qwen/Qwen3-30B-A3B", "tensor_parallel_size": 2, "enable_expert_parallel": True},
        {"gpu": "orin", "model": SMALL, "power_mode": "15W"},
        {"gpu": "l4", "model": SMALL, "weights": "int4"},
    )
    return [Meter(build_instance(InstanceChoice(**choice)).step_model) for choice in choices]


BATCHES = st.builds(
    lambda chunks, contexts: Batch(tuple(PrefillChunk(*chunk) for chunk in chunks), np.array(contexts, dtype=np.int64)),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 3000), st.booleans()), max_size=3),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=40),
)


@settings(max_examples=40, deadline=None)
@given(batch=BATCHES, which=st.integers(0, 4))
def test_a_step_is_the_sum_of_its_causes_parts_and_consumers(meters, batch, which):
    meter = meters[which]
    cost, account = meter.of_batch(batch)
    assert cost == meter.model.step(batch)
    assert tuple(account.causes) == CAUSES and set(account.parts) == set(STEP_PARTS)
    for values, total in (
        (account.causes, cost.seconds), (account.parts, cost.seconds), (account.joules, cost.joules),
    ):  # fmt: skip
        assert sum(map(float, values.values())) == pytest.approx(total, rel=REL)
    for name in ("roofline", "bandwidth", "compute"):
        assert account.parts[name] >= -REL * cost.seconds
    assert all(float(joules) >= -1e-6 * cost.joules for joules in account.joules.values())


@settings(max_examples=25, deadline=None)
@given(batch=BATCHES, which=st.integers(0, 4))
def test_many_steps_are_accounted_for_like_one(meters, batch, which):
    meter = meters[which]
    costs, many = meter.of_steps(Steps.from_batches([batch, batch], meter.model.rules))
    cost, one = meter.of_batch(batch)
    assert costs.seconds == pytest.approx(cost.seconds, rel=1e-9)
    for kind in ("causes", "parts", "joules"):
        for name, value in getattr(one, kind).items():
            assert getattr(many, kind)[name] == pytest.approx(float(value), rel=1e-6, abs=1e-9)


def test_a_power_cap_and_the_launches_of_eager_steps_are_told():
    capped = Meter(build_instance(InstanceChoice(gpu="h100", model=EIGHT, power_mode="300W")).step_model)
    _, account = capped.of_batch(Batch((PrefillChunk(8192),)))
    assert account.parts["power cap"] > 0.1 * account.parts["roofline"]
    eager = Meter(build_instance(InstanceChoice(gpu="h100", model=SMALL, enforce_eager=True)).step_model)
    _, account = eager.of_batch(Batch((), np.array([100])))
    assert account.parts["launch"] == max(account.parts.values())


def test_the_roofline_of_a_decode_step_is_what_anybody_computes(meters):
    """Eight billion weights of 2 bytes but for the embedding, of which rows are read; 2 FLOPs each at the peak."""
    model = meters[0].model
    floor = floor_of(model, Steps.from_batches([Batch((), np.array([1000]))], model.rules))
    weights = model.model.parameters() - 128_256 * 4096
    assert floor.linear_memory_s[0] == pytest.approx(2.0 * weights / 3.35e12, rel=0.01)
    assert floor.linear_compute_s[0] == pytest.approx(2.0 * weights / 989.4e12, rel=0.01)
    kv_byte = 1001 * 32 * 2 * 8 * 128 * 2.0
    assert floor.attention_memory_s[0] == pytest.approx(kv_byte / 3.35e12, rel=0.02)
    assert floor.memory_bound[0] and floor.seconds[0] == pytest.approx(
        floor.linear_memory_s[0] + floor.attention_memory_s[0], rel=REL
    )


# -- strategies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orin():
    scenario = flight()
    result = simulate_scenario(scenario)
    return SimpleNamespace(result=result, found=explain_flights(scenario, result))


def test_parts_of_a_flight_sum_to_the_reported_figures(orin):
    assert_sums(orin.found)
    figures = orin.result.summary()
    assert orin.found.ladder.total == pytest.approx(figures["wall_s_p50"], rel=REL)
    assert orin.found.energy.total == pytest.approx(figures["energy_j_p50"], rel=REL)


def test_causes_agree_with_those_of_the_report(orin):
    shares, whole = orin.found.causes.shares(), orin.result.shares()
    assert all(shares[cause] == pytest.approx(whole[cause], abs=0.02) for cause in CAUSES)
    assert orin.found.sentence.startswith("Memory-bound:")


def test_everything_ten_per_cent_faster_takes_a_tenth_less(orin):
    """All that takes time is made of the five resources, so time is homogeneous of degree -1 in them.

    Exactly -9.09 %, up to a constant of the physics that no resource shortens (the time after which arithmetic is
    sustained). The elasticities of the five sum to -1, up to the curvature over 10 %: 3 % tolerance.
    """
    found = {each.name: each for each in orin.found.sensitivities}
    assert found["all"].changes["wall_s_p50"] == pytest.approx(1.0 / 1.1 - 1.0, rel=2e-3)
    assert sum(found[name].elasticity for name in RESOURCES) == pytest.approx(-1.0, abs=0.03)
    assert found["all"].changes["output_tok_per_s"] == pytest.approx(0.1, rel=2e-3)


def test_resources_that_are_not_used_have_no_effect_at_all(orin):
    for name in ("link", "max_num_seqs", "kv_memory"):
        assert set(next(e for e in orin.found.sensitivities if e.name == name).changes.values()) == {0.0}


def test_more_hardware_and_fewer_tokens_never_take_longer(orin):
    found = changes(orin.found)
    assert all(found[each.name] <= 0.0 for each in HARDWARE if each.name in found)
    assert found["output_tok"] < -0.05 and found["prompt_tok"] < 0.0
    assert found["clock"] <= found["flops"] and found["all"] <= min(found[name] for name in RESOURCES)
    assert found["weights_int4"] < 0.0 and found["weights_int8"] < 0.0
    assert changes(orin.found, "energy_j_p50")["output_tok"] < 0.0


def test_sensitivities_are_sorted_by_effect(orin):
    found = list(changes(orin.found).values())
    assert found == sorted(found)


def test_critical_path_names_calls_and_phases(orin):
    (path,) = orin.found.further
    names = {part.name for part in path.parts}
    assert {"draft: decode", "distill: prefill", "answer: decode"} <= names
    assert orin.found.calls["draft"]["calls"] == 8.0


def test_waits_several_engines_and_questions_leave_nothing_unexplained(tmp_path):
    file = tmp_path / "waits.json"
    nodes = [
        {"id": "draft", "prompt": ["problem"], "output_tok": 64},
        {"id": "tool", "kind": "wait", "seconds": 30.0, "after": ["draft"]},
        {"id": "answer", "prompt": ["problem", {"output": "draft"}], "output_tok": 64, "after": ["tool"]},
    ]
    sheet = {"tokenflight_schedule": 1, "texts": {"problem": 64}, "nodes": nodes, "answer": ["answer"]}
    file.write_text(json.dumps(sheet))
    waits = explain_flights(flight(gpu="h100", strategy=None, schedule=str(file), repetitions=1))
    assert_sums(waits)
    assert waits.sentence.startswith("Bound by external waits: waiting for tools takes 9")
    assert {part.name: part.value for part in waits.further[0].parts}["tool: wait"] == pytest.approx(30.0)
    several = explain_flights(
        flight(
            gpu="h100", strategy="best_of_n", repetitions=1, roles=("reward=qwen3-0.6b@l4",), replicas=2, questions=3,
            concurrency=2, strategy_parameters={"samples": 2, "thinking_tok": 100},
        )
    )  # fmt: skip
    assert_sums(several)
    assert "On average a GPU is idle" in several.sentence


def test_queues_of_a_flight_show_on_its_critical_path():
    found = explain_flights(
        flight(gpu="h100", strategy="self_consistency", engine_settings={"max_num_seqs": 2}, repetitions=1)
    )
    assert_sums(found)
    assert "stand in the queue" in found.sentence
    assert changes(found)["max_num_seqs"] < -0.05


def test_diffusion_streams_and_lock_step_are_explained():
    for strategy in ("llada", "parscale", "hogwild"):
        asked = {"repetitions": 1, "gpu": "h100", "strategy": strategy}
        found = explain_flights(flight(**asked, model=None if strategy == "llada" else SMALL))
        assert_sums(found)
        assert ("output_tok" in changes(found)) == (strategy != "llada")


# -- traffic ---------------------------------------------------------------------------------------------------

DEPLOYMENTS = {
    "one": {},
    "replicas": {"data_parallel_size": 2, "routing": "least_loaded"},
    "disaggregated": {"prefill_replicas": 1, "data_parallel_size": 2},
    "speculative": {"speculative": SpeculativeSettings(3, 0.7, "draft", "llama-3.2-1b")},
    "eagle": {"speculative": SpeculativeSettings(2, 0.6, "eagle")},
    "parallel": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "few_seats": {"engine_settings": {"max_num_seqs": 4}},
    "tight_memory": {"gpu": "rtx-4090", "model": "Qwen/Qwen3-8B", "traffic": traffic(40, 1e3, 0, 900, 600)},
    "step_by_step": {"step_by_step": True},
    "clients": {"traffic": traffic(40, clients=6)},
    "windows": {"model": "google/gemma-3-4b-it", "traffic": traffic(20, prompt=2000)},
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_watched_run_is_the_same_run_and_all_its_time_is_explained(name):
    scenario = server(**DEPLOYMENTS[name])
    result = simulate_traffic(scenario)
    served, diaries = watched(scenario.traffic, prepare_traffic(scenario).deployment)
    for own, other in ((result.served.requests, served.requests), (result.served.steps, served.steps)):
        for field in own.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(own, field), getattr(other, field))
    setup = prepare_traffic(scenario)
    spent = explaining.spent_of(served, diaries, explaining._physics(setup))
    for kind, whole in (("causes", served.steps.duration_s), ("parts", served.steps.duration_s),
                        ("joules", served.steps.joules)):  # fmt: skip
        np.testing.assert_allclose(sum(spent.values[kind].values()), whole, rtol=1e-12)
    stays = explaining.stays_of(served, diaries, spent.by_phase("causes"))
    requests = served.requests
    inside = sum(of for named in stays.whole.values() for of in named.values())
    queue_s = requests.finished_s - requests.engine_s - inside
    if "disaggregated" not in name:
        np.testing.assert_allclose(queue_s, requests.scheduled_s - requests.engine_s, atol=1e-9)
    assert (queue_s >= -1e-9).all()
    first = sum(of for named in stays.first.values() for of in named.values())
    waited = queue_s + first + requests.engine_s - requests.arrival_s
    np.testing.assert_allclose(waited, requests.first_token_s - requests.arrival_s, atol=1e-9)


def test_what_a_diary_prices_is_what_the_run_took():
    """Before it is scaled: the table of costs interpolates, so within its own error."""
    for name in ("one", "speculative", "eagle", "parallel", "windows", "tight_memory"):
        scenario = server(**DEPLOYMENTS[name])
        setup = prepare_traffic(scenario)
        served, diaries = watched(scenario.traffic, setup.deployment)
        physics = explaining._physics(setup)
        steps = Steps.concatenate([diary.steps() for diary in diaries])
        seconds = np.zeros(len(steps))
        for model, rows, where, times in _work(physics, steps):
            seconds[where] += times * model.price(rows).seconds
        np.testing.assert_allclose(seconds * served.steps.steps, served.steps.duration_s, rtol=1e-3)


def test_a_diary_counts_every_key_that_is_attended_to():
    alone = Traffic(np.array([100]), np.array([500]), np.array([0.0]))
    served, (diary,) = watched(alone, prepare_traffic(server(alone)).deployment)
    steps, often = diary.steps(), served.steps.steps
    assert steps.decode_keys[:, 0] @ often == sum(100 + written for written in range(1, 500))
    assert steps.prefill_pairs[:, 0] @ often == sum(range(1, 101)) and steps.sampled @ often == 500


def test_a_diary_knows_who_goes_on_decoding_after_a_preemption():
    """Beside two that decode 100 and 50 keys, one with 30 in its cache: it attends to 31."""
    planned = SimpleNamespace(
        chunks=[(None, 20, 10, True)], joins=[30], decoding=2, admitted=[], keys=lambda: [150], slopes=lambda: [2]
    )
    diary = Diary((KeyRule(),))
    diary.note(planned, 1)
    diary.rows = 1
    steps = diary.steps()
    assert steps.decode_keys.tolist() == [[181.0]] and steps.decode_sequences.tolist() == [3.0]
    assert steps.prefill_pairs.tolist() == [[sum(range(11, 31))]] and steps.prefill_keys.tolist() == [[30.0]]
    assert steps.sampled.tolist() == [4.0] and steps.prefill_cached_tok.tolist() == [10.0]


@pytest.fixture(scope="module")
def crowded():
    scenario = server(traffic(60, 60.0), engine_settings={"max_num_seqs": 8})
    result = simulate_traffic(scenario)
    return SimpleNamespace(result=result, found=explain_traffic(scenario, result))


def test_parts_of_traffic_sum_to_the_reported_figures(crowded):
    assert_sums(crowded.found)
    figures, (first, whole) = crowded.result.summary(), crowded.found.further
    assert crowded.found.ladder.total == pytest.approx(figures["e2e_s_mean"], rel=REL)
    assert first.total == pytest.approx(figures["ttft_s_mean"], rel=REL)
    assert whole.total == pytest.approx(figures["duration_s"], rel=REL)
    assert crowded.found.energy.total == pytest.approx(figures["energy_j"], rel=REL)
    queue = {part.name: part.value for part in first.parts}["queue"]
    assert queue == pytest.approx(figures["queue_s_mean"], rel=1e-6)


def test_a_queue_is_told_and_seats_shorten_it(crowded):
    assert crowded.found.sentence.startswith("Queue-bound: waiting in the engine's queue")
    found = changes(crowded.found)
    assert found["max_num_seqs"] < -0.03 and found["link"] == 0.0
    assert all(found[each.name] <= 1e-9 for each in HARDWARE if each.name in found)
    assert changes(crowded.found, "ttft_s_p50")["max_num_seqs"] < 0.0


def test_clients_that_wait_make_time_homogeneous_again():
    found = explain_traffic(server(traffic(40, clients=6), tensor_parallel_size=2))
    by_name = {each.name: each for each in found.sensitivities}
    assert by_name["all"].changes["e2e_s_mean"] == pytest.approx(1.0 / 1.1 - 1.0, rel=5e-3)
    assert sum(by_name[name].elasticity for name in RESOURCES) == pytest.approx(-1.0, abs=0.05)
    assert by_name["link"].changes["e2e_s_mean"] < 0.0
    assert_sums(found)


def test_refused_requests_are_in_no_time():
    what = traffic(12)
    long = Traffic(np.full(12, 5000), what.output_tok, what.arrival_s, title="too long")
    found = explain_traffic(server(long, engine_settings={"max_model_len": 512}))
    assert found.ladder.total == 0.0 and found.sentence.startswith("Nothing was answered")
    assert "Nothing was answered" in render_explanation(found)


# -- changes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", HARDWARE, ids=lambda each: each.name)
def test_hardware_changes_what_it_names_and_nothing_else(hardware):
    before = build_instance(InstanceChoice(gpu="orin", model=SMALL, power_mode="30W"))
    after = faster_instance(before, hardware)
    ratio = {
        "bandwidth": after.device.memory.bandwidth_byte_per_s / before.device.memory.bandwidth_byte_per_s,
        "flops": after.device.compute.peak_flop_per_s["fp16"] / before.device.compute.peak_flop_per_s["fp16"],
        "latency": before.step_model.p.decode.start_s / after.step_model.p.decode.start_s,
        "host": before.step_model.p.engine.eager_launch_s / after.step_model.p.engine.eager_launch_s,
        "power limit": after.device.power.limit_w / before.device.power.limit_w,
    }
    for name, found in ratio.items():
        assert found == pytest.approx(1.1 if name in hardware.of else 1.0)
    assert after.memory == before.memory and after.settings == before.settings


@given(st.integers(0, 2**32), st.floats(0.1, 1.0), st.sampled_from(["77", "uniform:5:900", "lognormal:300:0.7"]))
@settings(max_examples=30, deadline=None)
def test_shorter_lengths_use_the_same_random_numbers(seed, factor, text):
    inner = parse_lengths(text)
    one, other = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn, fewer = inner.sample(one, 5), Scaled(inner, factor).sample(other, 5)
    np.testing.assert_allclose(fewer, np.maximum(1, factor * drawn), atol=0.5)
    assert one.random() == other.random() and inner.draw(one) >= Scaled(inner, factor).draw(other)


@pytest.mark.parametrize("name", ["pdr", "self_consistency", "beam_search"])
def test_a_shorter_flight_makes_the_same_calls_with_a_tenth_less(name):
    setup = prepare(flight(strategy=name, repetitions=2))
    whole, short = flying._flown(setup), flying._flown(setup, strategy=shorter_strategy(setup.strategy, output=0.9))
    for flown, shorter in zip(whole, short):
        assert [call.label for call in flown.calls] == [call.label for call in shorter.calls]
        for call, less in zip(flown.calls, shorter.calls):
            assert less.output_tok == pytest.approx(0.9 * call.output_tok, abs=1.0)


def test_shorter_prompts_still_hold_their_shared_beginnings():
    parts = (("system", 7), ("tools", 6))
    arrival = np.array([0.0, 1.0])
    whole = Traffic(np.array([13, 400]), np.array([1, 9]), arrival, shared_prefix=(parts, ()))
    short = shorter_traffic(whole, output=0.5, prompt=0.5)
    assert short.shared_prefix[0] == (("system", 4), ("tools", 3))
    assert short.prompt_tok.tolist() == [7, 200] and short.output_tok.tolist() == [1, 4]


def test_a_change_that_cannot_be_simulated_is_told_and_stands_last():
    def fails():
        raise UserError("it does\nnot fit")

    trials = [
        Trial("a", "A", "engine", fails), Trial("b", "B", "engine", lambda: {"t": 1.1}),
        Trial("c", "C", "hardware", lambda: {"t": 0.5}),
    ]  # fmt: skip
    found = tried(trials, {"t": 1.0}, ("t",), None)
    assert [each.name for each in found] == ["c", "b", "a"]
    assert found[2].reason == "it does not fit" and found[2].changes == {}
    assert found[0].elasticity == pytest.approx(math.log(0.5) / math.log(1.1)) and found[1].elasticity is None


def test_more_seats_always_fit_into_a_step():
    found = more_seats(SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=64))
    assert found == {"max_num_seqs": 70, "max_num_batched_tokens": 70}


# -- what users meet ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Call the program in this process: run(*args) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            simulate.main(list(args), prog_name="simulate")
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return call


FLY = ("--gpu", "orin", "--strategy", "self_consistency", "--samples", "2", "--model", SMALL, "--repetitions", "2")
SERVE = ("traffic", "--gpu", "h100", "--model", EIGHT, "--rate", "20", "--requests", "20", "--input", "100",
         "--output", "20")  # fmt: skip


@pytest.mark.parametrize("command", [FLY, SERVE], ids=["strategy", "traffic"])
def test_an_explained_run_prints_the_same_figures_and_more(run, command):
    plain, explained = run(*command), run(*command, "--explain")
    assert explained.code == 0 and explained.err == ""
    assert explained.out.startswith(plain.out)
    more = explained.out.removeprefix(plain.out)
    for words in ("Explanation", "data-sheet roofline", "steps with prompts", "What would change it", "link bandwidth"):
        assert words in more


@pytest.mark.parametrize("command", [FLY, SERVE], ids=["strategy", "traffic"])
def test_json_holds_everything_beside_the_same_figures(run, command):
    plain, explained = (json.loads(run(*command, *more, "--json").out) for more in ((), ("--explain",)))
    found = explained.pop("explanation")
    assert explained == plain
    assert sum(part["value"] for part in found["ladder"]["parts"]) == pytest.approx(found["ladder"]["total"], rel=REL)
    assert found["facts"]["seed"] == plain["seed"] and found["facts"]["calibration"] == plain["calibration"]["id"]
    assert {each["name"] for each in found["sensitivities"]} >= {"bandwidth", "flops", "clock", "host", "output_tok"}


def test_explaining_twice_gives_the_same_bytes(run, tmp_path):
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    outs = [run(*FLY, "--explain-plot", str(file)) for file in files]
    assert outs[0].out == outs[1].out and "Explanation" in outs[0].out
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_waterfall_climbs_to_the_total(orin):
    from matplotlib.figure import Figure

    figure = Figure()
    draw_waterfall(orin.found, figure)
    axes = figure.axes[0]
    bars = list(axes.patches)
    assert len(bars) == len(shown_parts(orin.found)) + 1
    for before, bar in pairwise(bars[:-1]):
        assert bar.get_y() == pytest.approx(before.get_y() + before.get_height())
    assert bars[-1].get_height() == pytest.approx(bars[-2].get_y() + bars[-2].get_height())
    assert axes.get_xticklabels()[-1].get_text() == "predicted"


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.txt", "expected a file name ending in .png"), ("no/such/x.png", "does not exist"), ("", "file name is empty")],
)
def test_a_plot_that_cannot_be_written_is_refused_before_anything_runs(run, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    for command in (FLY, SERVE):
        found = run(*command, "--explain-plot", name)
        assert found.code == 2 and found.out == "" and words in found.err
        assert found.err.count("\n") == 1 and "--explain-plot" in found.err


def test_one_file_for_two_pictures_is_refused(run, tmp_path):
    both = str(tmp_path / "x.png")
    found = run(*FLY, "--plot", both, "--explain-plot", both)
    assert found.code == 2 and "this is also the file of --plot" in found.err
