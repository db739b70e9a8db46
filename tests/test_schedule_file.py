"""Schedule files: what they say flies, what flew is saved, and flies again alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_rig import (
    A,
    accounts,
    assert_same_timeline,
    document,
    relaxed,
    replay,
    saved,
    schedule_with,
    sheets,
    span,
)
from strategy_rig import PHYSICS, carry_out, fly_fake

from simulator.engine import EngineSettings
from simulator.errors import UserError
from simulator.flight import fly
from simulator.questions import Questions
from simulator.schedule.files.order import WINDOW, implied
from simulator.schedule.files.save import save_schedule, schedule_of
from simulator.schedule.files.schedule import check_sheet, load_schedule, parse_schedule, schedule_text, write_schedule
from simulator.schedule.files.sheet import NodeSheet, ScheduleSheet
from simulator.strategies import Strategy, list_strategies
from simulator.strategies.registry import COMMON

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples" / "schedules").glob("*.json"))


def by_label(run):
    return {task.label: task for task in run.submitted}


# -- what the words mean -----------------------------------------------------------------------------------------------


def test_reading_an_output_is_waiting_for_it():
    run = replay(schedule_with(A, {"id": "b", "prompt": ["problem", {"output": "a", "first": 3}], "output_tok": 2}))
    a, b = run.calls
    assert b.record.submitted_s == a.record.finished_s
    assert b.record.prompt_tok == 10 + 3
    assert b.parents == (a,)


def test_a_node_starts_when_the_last_thing_it_waits_for_has_happened():
    nodes = (
        {"id": "a", "prompt": ["problem"], "output_tok": 40},
        {"id": "tool", "kind": "wait", "seconds": 0.125, "after": [{"call": "a", "written": 7}]},
        {"id": "b", "prompt": ["problem"], "output_tok": 3, "after": ["tool", {"call": "a", "written": 20}]},
    )
    tasks = by_label(replay(schedule_with(*nodes)))
    first, step = tasks["a"].record.first_token_s, PHYSICS.decode_s([10])
    assert tasks["tool"].started_s == pytest.approx(first + 6 * step, rel=1e-3)
    assert tasks["tool"].finished_s == tasks["tool"].started_s + 0.125
    expected = max(tasks["tool"].finished_s, first + 19 * step)
    assert tasks["b"].record.submitted_s == pytest.approx(expected, rel=1e-3)


def test_the_first_to_finish_stops_the_others():
    paths = [
        {"id": f"p{i}", "prompt": ["problem"], "output_tok": tokens, "stopped_by": ["first"]}
        for i, tokens in enumerate((30, 9, 50))
    ]
    gate = {"id": "first", "kind": "gate", "after": ["p0", "p1", "p2"], "count": 1}
    tasks = by_label(replay(schedule_with(*paths, gate, answer="p1")))
    assert [tasks[f"p{i}"].output_tok for i in range(3)] == [9, 9, 9]
    assert [tasks[f"p{i}"].stopped for i in range(3)] == [True, False, True]


def test_a_stop_needs_all_of_its_causes_and_a_judge_can_send_it():
    nodes = (
        {"id": "a", "prompt": ["problem"], "output_tok": 300, "stopped_by": ["judge", "clock"]},
        {
            "id": "judge",
            "prompt": ["problem"],
            "output_tok": 20,
            "after": [{"call": "a", "written": 10}],
            "role": "judge",
        },
        {"id": "clock", "kind": "wait", "seconds": 1.5},
    )
    tasks = by_label(replay(schedule_with(*nodes)))
    assert tasks["a"].stopped and tasks["a"].record.finished_s >= 1.5
    assert tasks["a"].record.finished_s < 1.5 + PHYSICS.decode_s([500])
    assert tasks["judge"].record.finished_s < 1.5


def test_attending_reads_kept_kv_without_prefill_and_waits_for_it():
    nodes = ({**A, "keep": {"until": ["b"]}}, {"id": "b", "prompt": ["problem"], "attend": ["a"], "output_tok": 4})
    run = replay(schedule_with(*nodes, answer="b"))
    a, b = run.calls
    assert b.record.submitted_s == a.record.finished_s and b.record.prompt_tok == 10
    assert a.released_by == (b,)


def test_attending_to_a_running_node_waits_only_for_its_start():
    nodes = (
        A,
        {"id": "long", "prompt": ["problem"], "output_tok": 60, "after": ["a"]},
        {"id": "b", "prompt": ["problem"], "attend": [{"running": "long"}], "output_tok": 4},
    )
    tasks = by_label(replay(schedule_with(*nodes)))
    assert tasks["b"].record.submitted_s == tasks["a"].record.finished_s == tasks["long"].record.submitted_s


def test_lock_step_workers_advance_together():
    team = [{"id": i, "prompt": ["problem"], "output_tok": "uniform:5:50", "together": "team"} for i in ("a", "b")]
    run = replay(schedule_with(*team, {"id": "c", "prompt": [{"output": "b"}], "output_tok": 3}))
    a, b, c = run.calls
    assert a.output_tok == b.output_tok and a.record.finished_s == b.record.finished_s == c.record.submitted_s
    assert a.group == b.group is not None


def test_a_prompt_can_repeat_another_ones():
    nodes = (
        A,
        {
            "id": "b",
            "prompt": [{"prompt": "a"}, {"output": "a"}, {"instruction": "more", "tokens": 3}],
            "output_tok": 4,
        },
        {"id": "c", "prompt": [{"prompt": "b"}, {"output": "b"}], "output_tok": 1},
        {"id": "d", "prompt": [{"prompt": "a", "first": 6}], "output_tok": 1},
    )
    tasks = by_label(replay(schedule_with(*nodes)))
    a, b = tasks["a"], tasks["b"]
    assert tasks["c"].prompt.parts == (*b.prompt.parts, (("output", b.call_id), 4))
    assert b.prompt.parts == (("problem", 10), (("output", a.call_id), 5), (("instruction", "more"), 3))
    assert tasks["c"].parents == (b,)
    assert tasks["d"].prompt.parts == (("problem", 6),) and tasks["d"].record.submitted_s == 0.0


def test_passes_of_a_diffusion_model():
    passes = [{"count": 3, "new_tok": 40}, {"count": 2, "new_tok": 8, "cached_tok": 32, "logits_tok": 8}]
    schedule = schedule_with({**A, "passes": passes})
    assert schedule.diffusion
    (call,) = replay(schedule).calls
    assert [tuple(stage) for stage in call.passes] == [(3, 40, 0, None), (2, 8, 32, 8)]


def test_lengths_are_drawn_anew_in_every_repetition_and_cut():
    schedule = schedule_with({**A, "output_tok": "uniform:1:90", "max_tok": 50})
    drawn = {replay(schedule, seed=seed).calls[0].output_tok for seed in range(20)}
    assert len(drawn) > 4 and max(drawn) == 50
    assert schedule.random and not schedule_with(A).random


def test_what_a_schedule_says_about_itself():
    schedule = schedule_with({**A, "role": "judge"}, name="mine", about="words", streams=4)
    assert (schedule.name, schedule.about, schedule.streams, schedule.roles) == ("mine", "words", 4, ("judge",))
    assert schedule.problem_tok == 10 and not schedule.diffusion
    assert schedule_with(A).name == "f"
    assert schedule_with({**A, "prompt": [{"instruction": "x", "tokens": 4}]}, texts={}).problem_tok == 1


def test_each_of_several_questions_has_its_own_problem():
    """And its own length; what else the file names is the same text for all of them."""
    again = {"id": "b", "prompt": ["problem", {"text": "problem", "first": 40}, {"output": "a"}], "output_tok": 4}
    schedule = schedule_with(A, again, texts={"problem": 64})
    runs = []

    def questions(run):
        runs.append(run)
        return schedule.replay(run)

    wrapped = Strategy("file", "file", "", "", (replace(COMMON[0], default=64),), (), (), questions)
    flight = fly(PHYSICS, 10**6, EngineSettings(), wrapped, None, 1, questions=Questions(2, tokens=(64, 80)))[0]
    assert [run.calls[0].prompt.parts for run in runs] == [(("problem 1", 64),), (("problem 2", 80),)]
    assert [run.calls[1].prompt.tokens for run in runs] == [64 + 40 + 5, 80 + 40 + 5]
    assert [call.cached_tok for call in flight.calls] == [0, 0, 64, 80]


def test_a_prompt_of_which_nothing_was_written_is_told():
    nodes = (
        {"id": "go", "kind": "wait", "seconds": 0},
        {
            "id": "late",
            "prompt": ["problem"],
            "output_tok": 5,
            "after": [{"call": "a", "written": 2}],
            "stopped_by": ["go"],
        },
        {"id": "reader", "prompt": [{"output": "late"}], "output_tok": 5},
    )
    with pytest.raises(UserError, match=r"node \"reader\", field 'prompt': found nothing to read"):
        replay(schedule_with(A, *nodes))


def test_attending_to_what_was_given_back_is_told():
    nodes = (
        {**A, "keep": {"until": ["soon"]}},
        {"id": "soon", "kind": "wait", "seconds": 0.01},
        {"id": "b", "prompt": ["problem"], "attend": ["a"], "output_tok": 4, "after": ["later"]},
        {"id": "later", "kind": "wait", "seconds": 1, "after": ["a"]},
    )
    with pytest.raises(UserError, match='node "b", field \'attend\': found "a", whose KV cache was given back before'):
        replay(schedule_with(*nodes))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_fly(path):
    schedule = load_schedule(path)
    run = replay(schedule)
    assert run.answer and len(run.submitted) == sum(node.kind != "gate" for node in schedule.sheet.nodes)
    assert_same_timeline(run, replay(saved(run)))


def test_what_the_documentation_shows_is_so():
    text = (ROOT / "docs" / "schedules.md").read_text()
    blocks = [dedent(block) for block in re.findall(r"(?:^ {4}.*\n|^\n)+", text, re.MULTILINE)]
    (smallest,) = [block for block in blocks if block.strip().startswith('{\n  "tokenflight_schedule"')]
    assert len(replay(parse_schedule(smallest.encode(), "docs")).calls) == 2
    run = replay(schedule_with(A))
    for word in set(re.findall(r"run\.([a-z_]+)", text)):
        assert hasattr(run, word), f"docs/schedules.md: run.{word}"
    fields = {field for kind in (NodeSheet, ScheduleSheet) for field in kind.__struct_fields__}
    assert all(f"`{field}`" in text for field in fields)


def test_a_thousand_calls_in_layers_fly():
    rounds = [[f"n{i}" for i in range(start, start + 10)] for start in range(0, 1000, 10)]
    nodes = [
        {"id": id_, "prompt": ["problem", *({"output": read} for read in before)], "output_tok": 5}
        for before, own in zip([[], *rounds], rounds)
        for id_ in own
    ]
    data = document(*nodes, answer="n999")
    run = replay(parse_schedule(data, "f.json"))
    assert len(run.calls) == 1000
    assert run.critical_path_tok() == 100 * 5


# -- what flew is saved and flies again alike --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [strategy.name for strategy in list_strategies()])
def test_a_saved_strategy_gives_the_same_timeline(name):
    run = fly_fake(name, seed=1, run=True)
    again = replay(saved(run))
    assert_same_timeline(run, again)
    assert accounts(again) == accounts(run)
    assert schedule_text(schedule_of(again)) == schedule_text(schedule_of(run))


CROWDED = (
    {"engine": {"max_num_seqs": 3}},
    {"engine": {"max_num_seqs": 5, "max_num_batched_tokens": 256}},
    {"engine": {"enable_prefix_caching": False}},
    {"kv_tok": 40_000},
    {"replicas": 2},
)


@pytest.mark.parametrize("options", CROWDED, ids=str)
@pytest.mark.parametrize("name", ["pdr", "evolve", "hogwild", "parathinker", "v1", "hedged"])
def test_also_when_calls_queue_are_preempted_or_go_to_several_engines(name, options):
    run = fly_fake(name, seed=2, run=True, **options)
    assert_same_timeline(run, replay(saved(run), **options))


def test_roles_are_saved_and_played_by_others():
    run = fly_fake("best_of_n", seed=1, run=True, roles=("reward",))
    again = replay(saved(run), roles=("reward",))
    assert {call.record.engine for call in again.calls} == {"main", "reward"}
    assert_same_timeline(run, again)


def test_what_many_wait_for_is_saved_as_a_gate(tmp_path):
    run = fly_fake("v1", seed=1, run=True)
    sheet = schedule_of(run)
    assert any(node.kind == "gate" for node in sheet.nodes)
    assert sum(len(node.after) for node in sheet.nodes) < 4 * len(run.calls)


def test_a_call_stopped_before_anything_was_waited_for():
    def hasty(run):
        calls = run.start([run.generate(run.problem, "given up", 50), run.generate(run.problem, "answer", 5)])
        run.stop(calls[:1])
        return (yield run.all(calls))[1]

    run = carry_out(hasty)
    assert run.calls[0].stopped and run.calls[0].output_tok == 0
    again = replay(saved(run))
    assert [span(call) for call in again.calls] == [span(call) for call in run.calls]


def test_a_file_is_written_and_read(tmp_path):
    run = fly_fake("pdr", seed=1, run=True)
    path = save_schedule(run, tmp_path / "pdr.json", name="pdr", about="as flown", streams=2)
    schedule = load_schedule(path)
    assert (schedule.name, schedule.about, schedule.streams) == ("pdr", "as flown", 2)
    save_schedule(run, path)  # a schedule may be replaced
    assert load_schedule(path).name == "pdr"


def test_a_file_that_is_no_schedule_is_not_replaced(tmp_path):
    path = tmp_path / "package.json"
    path.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="no schedule"):
        write_schedule(schedule_with(A).sheet, path)
    assert path.read_text() == '{"name": "mine"}'
    with pytest.raises(UserError, match="cannot be written"):
        write_schedule(schedule_with(A).sheet, tmp_path / "missing" / "x.json")


# -- any valid graph ---------------------------------------------------------------------------------------------------


@relaxed
@given(sheets(), st.integers(0, 3))
def test_any_valid_graph_loads_flies_and_comes_back_as_it_was(sheet, seed):
    schedule = check_sheet(sheet, "any")
    assert parse_schedule(schedule_text(sheet).encode(), "any").sheet == sheet
    run = replay(schedule, seed=seed)
    assert len(run.submitted) == sum(node.kind != "gate" for node in sheet.nodes)
    check_dependencies(schedule, run)
    first = saved(run)
    again = replay(first)
    assert_same_timeline(run, again)
    assert accounts(again) == accounts(run)
    assert schedule_text(schedule_of(again)) == schedule_text(first.sheet)


def check_dependencies(schedule, run):
    """Nothing starts before what it reads has ended, and every node of the file has been there once."""
    ends = {call.call_id: call.record.finished_s for call in run.calls}
    for call in run.calls:
        for part_id, _ in call.prompt.parts:
            if isinstance(part_id, tuple) and part_id[0] == "output":
                assert ends[part_id[1]] <= call.record.submitted_s
        for other in call.attend:
            assert other.record.finished_s <= call.record.submitted_s
    labels = sorted(node.label or node.id for node in schedule.sheet.nodes if node.kind != "gate")
    assert sorted(task.label for task in run.submitted) == labels


def brute_force_implied(order, ended, begun, asked):
    past = {}
    for number in order:
        past[number] = set().union(*(past[o] | {o} for o in ended[number]), *(past[o] for o in begun[number]))
    return {
        (n, c)
        for n, candidates in asked.items()
        for c in candidates
        if any(c in past[o] for o in (*ended[n], *begun[n]))
    }


@given(st.lists(st.tuples(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30), max_size=2)), max_size=25))
def test_what_has_ended_in_any_case_is_found(drawn):
    ended = [sorted(o for o in many if o < n) for n, (many, _) in enumerate(drawn)]
    begun = [sorted(o for o in few if o < n) for n, (_, few) in enumerate(drawn)]
    asked = {n: found for n, found in enumerate(ended) if found}
    order = list(range(len(drawn)))
    assert implied(order, ended, begun, asked, set()) == brute_force_implied(order, ended, begun, asked)


def test_a_long_chain_needs_more_than_one_window():
    count = WINDOW + 50
    ended = [[n - 1, 0] if n > 1 else [0] * n for n in range(count)]
    found = implied(list(range(count)), ended, [()] * count, {n: ended[n] for n in range(2, count)}, set())
    assert found == {(n, 0) for n in range(2, count)}
