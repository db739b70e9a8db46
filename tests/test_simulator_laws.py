"""The laws of the simulator: they hold as shipped, and each catches the break that it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from calibration.replay import Replay, replay
from simulator.device import list_devices
from simulator.engine.batcher import Batcher
from simulator.memory import plan_memory
from simulator.step import StepCosts
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.served import Served
from validate.cli import SUBCOMMANDS, validate
from validate.laws import suite
from validate.laws.bounds import Floors
from validate.laws.known import KNOWN, why_broken
from validate.laws.law import Law, Result
from validate.laws.page import laws_page
from validate.laws.report import headline, lines, text, to_json
from validate.laws.subjects import KINDS, Misfit, Simulator, Subject, subject_of
from validate.laws.suite import FAMILIES, LAWS, Held, Report, check, check_all

KIND = {kind.label: kind for kind in KINDS}
GPU, MODEL = "l4", "llama-3.1-8b"  # memory-bound and near its floor, so that little is needed to fall below


@lru_cache
def shipped(gpu: str = GPU, label: str = MODEL) -> Subject:
    found = subject_of(gpu, KIND[label])
    assert isinstance(found, Subject)
    return found


def broken(subject: Subject, laws: set[str]) -> set[str]:
    """Laws that are broken, of the families of `laws`: the others need not be asked."""
    families = [FAMILIES[int(place) - 1] for place in sorted({law.partition(".")[0] for law in laws})]
    return {result.law for result in check(subject, families).results if not result.holds}


# -- as shipped ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "label"),
    [
        (GPU, MODEL),
        ("h100-sxm", "gpt-oss-20b"),
        ("a100-sxm-40gb", "llama-3.3-70b"),
        ("h200-sxm", "deepseek-v3"),
        ("mi300x", "nemotron-nano-9b-v2"),
        ("rtx-4090", "gemma-3-4b"),
        ("thor-agx-128gb", "llama-3.1-8b:int4"),
    ],
)
def test_every_law_holds(gpu, label):
    held = check(shipped(gpu, label))
    assert [result for result in held.results if not result.holds] == []
    whole_node = held.tp == shipped(gpu, label).device.interconnect.gpus_per_node
    optional = {"4.6"} if whole_node else set()  # no more devices to split over
    assert {result.law for result in held.results} == set(LAWS) - optional


def test_laws_have_numbers_of_their_own_and_say_where_they_come_from():
    numbers = [law.number for family in FAMILIES for law in family.FAMILY.laws]
    assert len(set(numbers)) == len(numbers) == len(LAWS)
    for place, family in enumerate(FAMILIES, start=1):
        assert [law.number for law in family.FAMILY.laws] == [
            f"{place}.{i}" for i in range(1, len(family.FAMILY.laws) + 1)
        ]
    assert all(law.statement and law.formula and law.source for law in LAWS.values())


def test_all_gpus_and_at_least_eight_models_are_asked():
    assert suite._gpus(()) == [device.id for device in list_devices()]
    assert len({kind.model for kind in KINDS}) >= 8 and suite._labels(()) == list(KIND)


def test_known_causes_still_break_something():
    """A cause that is gone must not stay behind as an excuse."""
    of_orin: set[str] = set()
    for gpu, label in (("orin-agx-64gb", MODEL), ("orin-nx-8gb", "qwen2.5-0.5b")):
        found = {result.law for result in check(shipped(gpu, label)).results if not result.holds}
        assert found and all(why_broken(law, gpu) for law in found)
        of_orin |= found
    assert {law for known in KNOWN for law in known.laws} == of_orin
    assert not why_broken("4.1", "h100-sxm")


# -- broken physics --------------------------------------------------------------------------------------------


class Bent:
    """A step model whose costs are bent after they have been computed."""

    in_parts = False

    def __init__(self, model, bend: Callable) -> None:
        self.model, self.bend = model, bend
        self.rules, self.idle_power_w, self.calibration = model.rules, model.idle_power_w, model.calibration

    def price(self, steps) -> StepCosts:
        cost = self.model.price(steps)
        factors = {"seconds": 1.0, "joules": 1.0, "shares": 1.0} | self.bend(self.model, steps)
        shares = {cause: share * factors["shares"] for cause, share in cost.shares.items()}
        return StepCosts(cost.seconds * factors["seconds"], cost.joules * factors["joules"], shares)


def slower(factor) -> dict:
    """All of a step, power unchanged."""
    return {"seconds": factor, "joules": factor, "shares": factor}


BENDS = {
    "time halved": (lambda model, steps: slower(0.5), {"1.4", "2.1"}),
    "seconds halved, causes not": (lambda model, steps: {"seconds": 0.5, "joules": 0.5}, {"1.4", "5.5"}),
    "fast beyond the peak": (lambda model, steps: slower(0.01), {"1.1", "1.2", "2.2", "5.7"}),
    "twenty times slower": (lambda model, steps: slower(20.0), {"1.3", "1.5", "2.3"}),
    "energy dropped": (lambda model, steps: {"joules": 0.05}, {"4.9"}),
    "energy twice": (lambda model, steps: {"joules": 3.0}, {"4.10"}),
    "large batches free": (lambda model, steps: slower(np.where(steps.decode_sequences > 8, 0.5, 1.0)), {"4.1"}),
    "long contexts free": (
        lambda model, steps: slower(np.where(steps.decode_keys[:, 0] > 1e4, 0.9, 1.0)),
        {"4.2"},
    ),
    "long prompts free": (lambda model, steps: slower(np.where(steps.prefill_tok > 600, 0.3, 1.0)), {"4.3"}),
    "bandwidth upside down": (
        lambda model, steps: slower((model.device.memory.bandwidth_byte_per_s / 3e11) ** 2),
        {"4.4"},
    ),
    "peaks upside down": (lambda model, steps: slower((model.device.compute.clock_hz / 2.04e9) ** 2), {"4.5"}),
    "each device does it all": (lambda model, steps: slower(float(model.parallel.tp**2)), {"4.6"}),
    "energy per token grows": (
        lambda model, steps: {"joules": np.maximum(1.0, steps.decode_sequences) ** 1.5},
        {"4.8"},
    ),
    "a replica's time counted for each": (lambda model, steps: slower(float(model.parallel.dp)), {"7.4"}),
    "a replica's power counted for each": (lambda model, steps: {"joules": float(model.parallel.dp)}, {"7.5"}),
}


@pytest.mark.parametrize("name", BENDS)
def test_bent_physics_breaks_the_right_law(name):
    bend, laws = BENDS[name]
    subject = subject_of(GPU, KIND[MODEL], Simulator(physics=lambda model: Bent(model, bend)))
    assert laws <= broken(subject, laws)


def test_a_wrapper_that_bends_nothing_breaks_nothing():
    subject = subject_of(GPU, KIND[MODEL], Simulator(physics=lambda model: Bent(model, lambda model, steps: {})))
    assert broken(subject, set(LAWS)) == set()


# -- broken engine ---------------------------------------------------------------------------------------------


def changed(served: Served, requests: dict | None = None, steps: dict | None = None, **own) -> Served:
    return replace(
        served,
        requests=replace(served.requests, **(requests or {})),
        steps=replace(served.steps, **(steps or {})),
        **own,
    )


def stretched(served: Served, factor: float) -> Served:
    """The same run, in another unit of time."""
    names = ("arrival_s", "engine_s", "scheduled_s", "first_token_s", "finished_s")
    times = {name: factor * getattr(served.requests, name) for name in names}
    spans = {name: factor * getattr(served.steps, name) for name in ("start_s", "duration_s", "joules")}
    return changed(served, times, spans, end_s=factor * served.end_s)


def later(served: Served, seconds: float) -> Served:
    return changed(served, {"finished_s": served.requests.finished_s + seconds})


def quick_when_full(traffic, served: Served) -> Served:
    """Latencies shrink the more densely requests come."""
    if traffic.arrival_s is None or len(traffic) < 100:
        return served
    gap_s = traffic.arrival_s[-1] / len(traffic)
    stays = (served.requests.finished_s - traffic.arrival_s) * gap_s
    return changed(served, {"finished_s": traffic.arrival_s + stays})


def without_knee(traffic, served: Served) -> Served:
    """Latencies rise with load, ever more slowly."""
    if traffic.arrival_s is None or len(traffic) < 100:
        return served
    return changed(served, {"finished_s": traffic.arrival_s + 1.0 / (1.0 + traffic.arrival_s[-1] / len(traffic))})


LONE = 1
ENGINES = {
    "tokens lost": (lambda t, d, s: changed(s, steps={"sampled": np.maximum(s.steps.sampled - 1, 0)}), {"5.1"}),
    "tokens computed twice": (lambda t, d, s: changed(s, steps={"prefill_tok": 2 * s.steps.prefill_tok}), {"5.2"}),
    "more blocks than there are": (lambda t, d, s: changed(s, steps={"kv_blocks": s.steps.kv_blocks + 10**7}), {"5.4"}),
    "energy of half the steps": (lambda t, d, s: changed(s, end_s=0.5 * s.end_s), {"5.6"}),
    "rests": (lambda t, d, s: changed(s, steps={"duration_s": 0.9 * s.steps.duration_s}), {"5.8", "5.9"}),
    "overlaps": (lambda t, d, s: changed(s, steps={"duration_s": 1.1 * s.steps.duration_s}), {"5.10"}),
    "slow alone": (lambda t, d, s: later(s, 1.0) if len(t) == LONE else s, {"1.6", "3.2"}),
    "quick when full": (lambda t, d, s: quick_when_full(t, s), {"3.1"}),
    "no knee": (lambda t, d, s: without_knee(t, s), {"3.5"}),
    "closed loops in another unit": (lambda t, d, s: stretched(s, 2.0) if t.clients else s, {"3.4"}),
    "many clients in each other's way": (lambda t, d, s: stretched(s, 1.3) if t.clients == 32 else s, {"2.4", "2.5"}),
    "jumps too far": (lambda t, d, s: later(s, 1e-6) if d.batcher is None else s, {"5.11"}),
    "replicas in each other's way": (lambda t, d, s: later(s, 1e-3) if d.replicas > 1 else s, {"7.1"}),
    "power of one replica": (
        lambda t, d, s: changed(s, steps={"joules": s.steps.joules / d.replicas}) if d.replicas > 1 else s,
        {"7.3"},
    ),
    "throughput of one replica": (lambda t, d, s: stretched(s, 2.0) if d.replicas > 1 else s, {"7.1", "7.2"}),
    "requests vanish": (
        lambda t, d, s: changed(s, {"finished_s": np.where(np.arange(len(t)) % 3, s.requests.finished_s, 1e9)}),
        {"3.3"},
    ),
    "no queue": (
        lambda t, d, s: changed(s, {"first_token_s": s.requests.arrival_s + 0.1 - 1e-5 * np.arange(len(t))}),
        {"3.6"},
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_a_broken_engine_breaks_the_right_law(name):
    change, laws = ENGINES[name]
    simulator = Simulator(serve=lambda traffic, deployment: change(traffic, deployment, serve(traffic, deployment)))
    assert laws <= broken(replace(shipped(), simulator=simulator), laws)


class Leaky(Batcher):
    """Forgets a block of whoever ends."""

    __slots__ = ()

    def _free(self, request, own_blocks: int) -> None:
        super()._free(request, own_blocks)
        self.unseen_blocks += 1


def test_leaked_blocks_are_found():
    def leaky(deployment: Deployment) -> Leaky:
        costs = deployment.costs
        return Leaky(deployment.settings, deployment.kv_blocks, costs.rules, deployment.async_scheduling)

    subject = shipped()
    leaking = replace(subject, deployment=replace(subject.deployment, batcher=leaky))
    assert "5.3" in broken(leaking, {"5.3"})


# -- broken memory ---------------------------------------------------------------------------------------------

MEMORY = {
    "weights forgotten": (lambda plan, _: replace(plan, weights_byte=0.4 * plan.weights_byte), {"6.2"}),
    "KV bytes of half the heads": (lambda plan, _: replace(plan, kv_byte_per_tok=0.5 * plan.kv_byte_per_tok), {"6.3"}),
    "more blocks than fit": (lambda plan, _: replace(plan, kv_blocks=2 * plan.kv_blocks), {"6.1", "6.4"}),
    "as many blocks whatever happens": (lambda plan, _: replace(plan, kv_blocks=5000), {"6.4", "6.6"}),
    "replicas take from each other": (
        lambda plan, parallel: replace(plan, kv_blocks=plan.kv_blocks // parallel.dp),
        {"6.7"},
    ),
    "fewer blocks with more memory": (
        lambda plan, _: replace(plan, kv_blocks=int(1e15 / plan.capacity_byte)),
        {"6.5"},
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_broken_memory_plan_breaks_the_right_law(name):
    change, laws = MEMORY[name]
    simulator = Simulator(plan_memory=lambda *args: change(plan_memory(*args), args[-1]))
    assert laws <= broken(replace(shipped(GPU, "qwen2.5-0.5b"), simulator=simulator), laws)


def test_records_whose_power_is_counted_for_each_replica_are_found():
    def counted_twice(setup, physics) -> Replay:
        found = replay(setup, physics)
        return Replay(found.values | {"power_w": setup.parallel.dp * found.values["power_w"]}, found.floor)

    assert broken(replace(shipped(), simulator=Simulator(replay=counted_twice)), {"7.6"}) == {"7.6"}


def test_every_law_but_one_is_broken_by_something():
    """4.7 looks at tables of formats, which nothing here replaces."""
    caught = set().union(*(laws for cases in (BENDS, ENGINES, MEMORY) for _, laws in cases.values()), {"5.3", "7.6"})
    assert set(LAWS) - caught == {"4.7"}


# -- bounds ----------------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.floats(0.0, 0.5))
def test_a_result_holds_when_the_relation_does(value, bound, tolerance):
    law = Law("0.0", "", "", "", "", tolerance=tolerance)
    # Away from the edge, where rounding decides.
    if abs(value / bound - 1.0 - tolerance) > 1e-12 and abs(value / bound - 1.0 + tolerance) > 1e-12:
        assert law.at_most(value, bound).holds == (value / bound - 1.0 <= tolerance)
        assert law.at_least(value, bound).holds == (1.0 - value / bound <= tolerance)
        assert law.equal(value, bound).holds == (abs(value / bound - 1.0) <= tolerance)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8), st.integers(0, 7))
def test_the_worst_point_is_named_and_a_missing_number_is_the_worst(values, place):
    law, where = Law("0.0", "", "", "", ""), [f"point {i}" for i in range(len(values))]
    assert law.at_most(values, 1.0, where).value == max(values)
    place %= len(values)
    values[place] = float("nan")
    found = law.at_most(values, 20.0, where)
    assert not found.holds and found.where == f"point {place}"


@pytest.mark.parametrize("label", KIND)
def test_floors_lie_below_ceilings_and_grow_with_the_work(label):
    floors = Floors(shipped("b300-sxm", label).instance)
    batch = 2.0 ** np.arange(11)
    for context in (16, 4096):
        computing, reading = floors.decode_s(batch, context)
        assert (np.diff(computing) > 0.0).all() and (np.diff(reading) > 0.0).all()
        assert (np.maximum(computing, reading) < floors.decode_ceiling_s(batch, context)).all()
    first, later = floors.prefill_s(100), floors.prefill_s(1000)
    assert first[0] < later[0] and first[1] <= later[1] and max(later) < floors.prefill_ceiling_s(1000)


def test_the_floor_of_a_dense_model_is_its_weights_over_bandwidth():
    subject = shipped("h100-sxm")
    own = 2.0 * subject.model.active_parameters(embedding=False)
    assert Floors(subject.instance).weights_byte(1.0)[0] == pytest.approx(own, rel=1e-6)
    assert Floors(subject.instance).prefill_s(1)[1] == pytest.approx(own / 3.35e12, rel=1e-6)


def test_a_model_that_does_not_fit_says_why():
    found = subject_of("orin-nano-4gb", KIND["llama-3.3-70b"])
    assert isinstance(found, Misfit) and "does not fit" in found.reason
    split = subject_of("l4", KIND["deepseek-v3"])
    assert isinstance(split, Misfit) and split.reason.startswith("not even on 8 devices: ")


def test_a_model_gets_as_few_devices_as_hold_it():
    assert shipped("h100-sxm", "llama-3.3-70b").parallel.tp == 4
    assert shipped("b200-sxm", "llama-3.3-70b").parallel.tp == 1


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setitem(SUBCOMMANDS, "simulator", "validate.commands.simulator")
    return lambda *arguments: CliRunner().invoke(validate, ["simulator", *arguments])


def test_one_deployment_in_full(run):
    found = run("--gpu", "h100", "--model", "llama-3.1-8b:fp8")
    assert found.exit_code == 0, found.output
    assert "h100-sxm llama-3.1-8b:fp8" in found.stdout and "BROKEN" not in found.stdout
    assert found.stdout.endswith("1 deployment on 1 GPU (0 combinations left out): all hold\n")
    for law in LAWS.values():
        assert f"{law.number} " in found.stdout and law.name in found.stdout


def test_json_has_every_result(run):
    found = json.loads(run("--gpu", "orin-nano-4gb", "--gpu", "h100", "--model", "qwen3-30b-a3b", "--json").stdout)
    assert found["summary"] == {"deployments": 1, "misfits": 1, "results": len(LAWS), "broken": 0, "known": 0}
    assert [one["gpu"] for one in found["deployments"]] == ["h100-sxm"]
    first = found["deployments"][0]["results"][0]
    assert set(first) == {"law", "value", "bound", "margin", "sense", "holds", "where"} and first["holds"]
    assert found["misfits"][0]["gpu"] == "orin-nano-4gb" and len(found["laws"]) == len(LAWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h1000"], "unknown GPU 'h1000'; nearest: h100"),
        (["--model", "llama-3.1-9b"], "unknown model 'llama-3.1-9b'"),
        (["--markdown", "x.md", "--gpu", "h100"], "expected no --gpu and no --model, found 'h100'"),
        (["--rate", "3"], "No such option '--rate'"),
        (["h100"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(run, arguments, message):
    found = run(*arguments)
    assert found.exit_code == 2 and found.stdout == ""
    assert message in found.stderr and found.stderr.count("\n") == 1


def made_up(margin: float = -0.5, gpu: str = "h100-sxm") -> Report:
    """A report in which every law has one result."""
    results = [Result(number, 1.0, 2.0, ">=", margin, "batch 3") for number in LAWS]
    return Report((Held(gpu, MODEL, 2, tuple(results)),), (Misfit(GPU, MODEL, "too large"),))


@pytest.mark.parametrize(("margin", "code"), [(-0.5, 1), (float("nan"), 1), (0.5, 0)])
def test_exit_code_says_whether_a_law_is_broken(run, monkeypatch, margin, code):
    monkeypatch.setattr(suite, "check_all", lambda *args: made_up(margin))
    found = run()
    assert found.exit_code == code
    assert ("BROKEN 4.1 step time in batch" in found.stdout) == bool(code)


def test_known_causes_are_told_but_stay_broken():
    report = made_up(gpu="orin-agx-64gb")
    known = sum(len(known.laws) for known in KNOWN)
    assert headline(report).endswith(f"{len(LAWS)} of {len(LAWS)} are broken, {known} of them for a known reason")
    assert KNOWN[0].why in text(report) and KNOWN[0].why not in text(made_up())
    assert to_json(report)["summary"]["known"] == known


def test_the_page_shows_every_law_and_deployment(run, monkeypatch, tmp_path):
    report = made_up(gpu="orin-agx-64gb")
    page = laws_page(report)
    assert page == laws_page(report)
    for law in LAWS.values():
        assert f"**{law.number} " in page and f"`{law.formula}`" in page
    for words in (
        "too large",
        f"2 (**{len(LAWS)} broken**)",
        "orin-agx-64gb llama-3.1-8b tp 2, batch 3",
        "1.000 >= 2.000",
    ):
        assert words in page
    monkeypatch.setattr(suite, "check_all", lambda *args: report)
    path = tmp_path / "laws.md"
    found = run("--markdown", str(path))
    assert found.exit_code == 1 and path.read_text() == page and f"validate: wrote {path}" in found.stderr
    refused = run("--markdown", str(tmp_path / "none" / "laws.md"))
    assert refused.exit_code == 2 and "cannot be written" in refused.stderr


def test_many_deployments_are_the_same_in_one_process_and_in_several(monkeypatch):
    asked = (("l4", "a30"), ("qwen2.5-0.5b", "phi-2"))
    seen = []
    several = check_all(*asked, lambda done, total: seen.append((done, total)))
    monkeypatch.setattr(suite.os, "sched_getaffinity", lambda _: {0})
    assert check_all(*asked) == several
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(one.gpu, one.label) for one in several.held] == [(g, m) for g in asked[0] for m in asked[1]]
    assert [line.held for line in lines(several)] == [4] * len(LAWS)
