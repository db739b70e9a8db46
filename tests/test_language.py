"""The wider words of the language of schedules: stops, marks, joins in KV, lock-step, waits, branches, engines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_rig import PHYSICS, carry_out

from simulator.batch import Batch
from simulator.errors import UserError
from simulator.schedule import Node, Pass, Text


def records(run, label):
    return [call.record for call in run.calls if call.label == label]


# -- ending early ----------------------------------------------------------------------------------------------


def test_first_finish_stops_the_siblings_at_the_same_token():
    def race(run):
        paths = [run.generate(run.problem, "path", n) for n in (90, 40, 70)]
        done = yield run.any(paths)
        assert done == [paths[1]]
        run.stop(paths)
        paths = yield run.all(paths)
        return paths

    run = carry_out(race)
    assert [call.output_tok for call in run.calls] == [40, 40, 40]
    assert [call.stopped for call in run.calls] == [True, False, True]
    assert len({call.record.finished_s for call in run.calls}) == 1
    assert run.calls[0].stopped_by == (run.calls[1],) and run.calls[1].stopped_by == ()
    assert run.calls[0].drawn_tok == 90


def test_what_stops_gives_its_seats_and_blocks_to_others():
    def kill(run):
        calls = run.start(run.generate(run.problem, "long", 1000) for _ in range(4))
        (judge,) = run.start([run.wait(1.0, "judge")])
        yield judge
        run.stop(calls[:3])
        yield run.all(calls)
        return calls

    run = carry_out(kill, engine={"max_num_seqs": 2})
    first, second, third, fourth = (call.record for call in run.calls)
    assert first.stopped and second.stopped and first.output_tok == second.output_tok > 1
    assert third.output_tok == 0 and third.finished_s == first.finished_s  # it never had a seat
    assert fourth.scheduled_s == first.finished_s and fourth.output_tok == 1000
    # what is stopped at second 1 ends with the step that runs then
    assert 1.0 <= first.finished_s <= 1.0 + PHYSICS.decode_s([2000, 2000])


def test_stopping_what_has_finished_changes_nothing():
    def plan(run):
        call = yield run.generate(run.problem, "a", 5)
        run.stop([call])
        return call

    assert not carry_out(plan).calls[0].stopped


def test_marks_are_reached_while_the_call_runs_on():
    seen = []

    def plan(run):
        calls = run.start([run.generate(run.problem, "a", 300), run.generate(run.problem, "a", 50)])
        yield run.written(calls, 100)
        seen.append(run.env.now)
        probe = yield run.generate(run.problem, "probe", 5)
        yield run.all(calls)
        return probe

    run = carry_out(plan)
    long, short = records(run, "a")
    (probe,) = records(run, "probe")
    assert short.finished_s < seen[0] == probe.submitted_s < long.finished_s
    contexts = [[100 + j] * 2 for j in range(49)] + [[100 + j] for j in range(49, 99)]
    prefill = PHYSICS.prefill_s(100 + 4)  # the second reads 96 of its tokens from the cache
    assert seen[0] == pytest.approx(prefill + sum(PHYSICS.decode_s(c) for c in contexts), rel=1e-12)
    assert probe.parents == (1,)  # the first had only written something
    assert run.calls[2].after == ((run.calls[0], 100), run.calls[1]) or set(run.calls[2].after) == {
        (run.calls[0], 100), run.calls[1]
    }  # fmt: skip
    assert run.critical_path_tok() == max(300, 100 + 5)


# -- joins in KV -------------------------------------------------------------------------------------------------


def test_a_join_in_kv_computes_nothing_again_and_reads_everything():
    def join(run):
        paths = yield run.all(run.samples(3, run.problem, "path", 64, keep=True))
        return (yield run.generate(run.problem + run.instruction("sum", 16), "summary", 10, attend=paths))

    run = carry_out(join, problem_tok=96)
    (summary,) = records(run, "summary")
    assert summary.cached_tok == 96 and summary.prompt_tok == 112
    own = [112 + j for j in range(9)]
    read = 3 * 63  # of each path: what it wrote and computed, without the problem that all share
    expected = PHYSICS.prefill_s(16) + sum(PHYSICS.decode_s([tokens + read]) for tokens in own)
    assert summary.finished_s - summary.submitted_s == pytest.approx(expected, rel=1e-12)


def test_kept_kv_stays_until_it_is_released():
    def plan(release):
        def strategy(run):
            paths = yield run.all(run.samples(2, run.problem, "path", 160, keep=True))
            if release:
                run.release(paths)
            return (yield run.generate(Text.of("other", 320), "other", 1))

        return strategy

    # 2 x 11 own blocks + 5 shared of 30: the other text needs 20
    assert carry_out(plan(True), problem_tok=96, kv_tok=30 * 16).calls[2].finished
    with pytest.raises(UserError, match=r"'other' .320 tokens. can never start: of 480 tokens .* 432 are held"):
        carry_out(plan(False), problem_tok=96, kv_tok=30 * 16)


def test_attending_to_what_was_not_kept_is_a_mistake_of_the_strategy():
    def plan(run):
        path = yield run.generate(run.problem, "path", 5)
        return (yield run.generate(run.problem, "summary", 5, attend=[path]))

    with pytest.raises(RuntimeError, match="attends to <finished call 'path'>, which has no KV: keep=True"):
        carry_out(plan)


def test_lock_step_workers_read_one_cache():
    def crew(run):
        return (
            yield run.together(
                run.generate(run.problem + run.instruction(f"worker {w}", 16), "worker", 50) for w in range(3)
            )
        )

    run = carry_out(crew, problem_tok=96)
    assert {call.group for call in run.calls} == {0}
    assert [call.output_tok for call in run.calls] == [50] * 3
    # step j: the problem, three instructions and 3 j tokens are read once for all three
    shared = PHYSICS.verifying(3)
    steps = sum(shared.step(Batch((), np.array([96 + 3 * 16 + 3 * j]))).seconds for j in range(49))
    assert run.calls[0].record.finished_s == pytest.approx(PHYSICS.prefill_s(96 + 16 + 2 * 16) + steps, rel=1e-9)
    assert run.critical_path_tok() == 50


def test_lock_step_workers_start_together_or_not_at_all():
    def crew(run):
        first = run.start([run.generate(run.problem, "early", 100)])
        workers = yield run.together(run.generate(run.problem, "worker", 20) for _ in range(2))
        yield run.all(first)
        return workers

    run = carry_out(crew, engine={"max_num_seqs": 2})
    early, *workers = (call.record for call in run.calls)
    assert all(worker.scheduled_s == early.finished_s for worker in workers)
    with pytest.raises(UserError, match="2 calls in lock-step do not fit in one step: max_num_seqs is 1"):
        carry_out(crew, engine={"max_num_seqs": 1})


def test_lock_step_workers_are_preempted_together():
    def crew(run):
        early = run.start([run.generate(Text.of("a", 16), "early", 300)])
        workers = yield run.together(run.generate(Text.of("b", 16), "worker", 200) for _ in range(2))
        yield run.all(early)
        return workers

    run = carry_out(crew, kv_tok=32 * 16)
    _, first, second = (call.record for call in run.calls)
    assert first.preemptions == second.preemptions >= 1
    assert first.finished_s == second.finished_s and first.output_tok == second.output_tok == 200


# -- waits, branches, passes ---------------------------------------------------------------------------------------


def test_an_external_wait_takes_time_and_no_energy_above_idle():
    def tool(run):
        call = yield run.generate(run.problem, "ask", 5)
        wait = yield run.wait(2.5, "search")
        assert wait.finished_s - wait.started_s == 2.5
        return (yield run.generate(run.problem + run.text(call) + run.instruction("found", 100), "answer", 5))

    run = carry_out(tool)
    ask, answer = (call.record for call in run.calls)
    assert answer.submitted_s == ask.finished_s + 2.5
    assert answer.parents == (1,) and run.waits[0].parents == (run.calls[0],)
    assert run.critical_path_tok() == 10


def test_branches_go_side_by_side_and_depend_only_on_their_own_past():
    def chain(run, name, lengths):
        call = None
        for tokens in lengths:
            call = yield run.generate(run.problem + (run.text(call) if call else run.empty()), name, tokens)
        return call

    def both(run):
        start = yield run.generate(run.problem, "start", 3)
        ends = yield run.branches([chain(run, "a", (10, 20)), chain(run, "b", (50,)), chain(run, "c", ())])
        assert ends[2] is None
        return (yield run.generate(run.problem + run.text([start, *ends[:2]]), "join", 5))

    run = carry_out(both)
    start, a1, b1, a2, join = run.calls
    assert [call.label for call in run.calls] == ["start", "a", "b", "a", "join"]
    assert a1.after == b1.after == (start,) and a2.after == (a1,)
    # the branch without calls leaves what it depended on as it was, but others stand for it
    assert set(join.after) == {a2, b1}
    assert run.critical_path_tok() == 3 + 50 + 5


def test_passes_of_a_diffusion_model_cost_what_their_positions_cost():
    def diffuse(run):
        return (yield run.passes(run.problem, "text", 64, [Pass(10, 164), Pass(5, 64, 100, 8)]))

    run = carry_out(diffuse)
    (record,) = records(run, "text")
    assert record.finished_s == pytest.approx(10 * PHYSICS.prefill_s(164) + 5 * PHYSICS.prefill_s(64), rel=1e-12)
    assert record.output_tok == 64


def test_passes_that_do_not_fit_in_one_step_wait_for_the_next():
    def diffuse(run):
        return (yield run.all(run.passes(run.problem, "text", 64, [Pass(4, 164)]) for _ in range(3)))

    run = carry_out(diffuse, engine={"max_num_batched_tokens": 400, "max_num_seqs": 64})
    first, second, third = (call.record for call in run.calls)
    assert first.finished_s == second.finished_s == pytest.approx(4 * PHYSICS.prefill_s(328))
    assert third.finished_s == pytest.approx(4 * PHYSICS.prefill_s(328) + 4 * PHYSICS.prefill_s(164))


@pytest.mark.parametrize("passes", [[], [Pass(0, 5)], [Pass(1, 0)], [Pass(1, 5, -1)]])
def test_impossible_passes_are_refused(passes):
    def diffuse(run):
        return (yield run.passes(run.problem, "text", 64, passes))

    with pytest.raises(ValueError, match="call 'text'"):
        carry_out(diffuse)


# -- graphs ----------------------------------------------------------------------------------------------------


def test_a_graph_starts_each_node_when_its_last_cause_has_happened():
    def strategy(run):
        a = Node(lambda done: run.generate(run.problem, "a", 40))
        b = Node(lambda done: run.generate(run.problem, "b", 10))
        wait = Node(lambda done: run.wait(0.5, "tool"), [b])
        c = Node(lambda done: run.generate(run.problem + run.text(done[a]), "c", 5), [a, wait])
        d = Node(lambda done: run.generate(run.problem, "d", 5), [(a, 20)])
        done = yield run.graph([c, a, b, wait, d])  # any order
        return [done[c], done[d]]

    run = carry_out(strategy)
    a, b, d, c = (call.record for call in run.calls)
    assert [r.label for r in (a, b, d, c)] == ["a", "b", "d", "c"]
    assert c.submitted_s == max(a.finished_s, b.finished_s + 0.5)
    assert b.finished_s < d.submitted_s < a.finished_s


def test_gates_stops_and_releases_of_a_graph():
    def strategy(run):
        paths = [Node(lambda done, n=n: run.generate(run.problem, "path", n, keep=True)) for n in (90, 30, 60)]
        gate = Node(None, paths, count=1)
        for path in paths:
            path.stopped_by = (gate,)
        summary = Node(lambda done: run.generate(run.problem, "sum", 5, attend=[done[path] for path in paths]), paths)
        for path in paths:
            path.released_by = (summary,)
        done = yield run.graph([*paths, gate, summary])
        assert done[gate] is None
        return done[summary]

    run = carry_out(strategy)
    assert [call.output_tok for call in run.calls] == [30, 30, 30, 5]
    assert [call.stopped for call in run.calls] == [True, False, True, False]
    assert run.calls[0].stopped_by == (run.calls[1],)
    assert all(call.released_by == (run.calls[3],) for call in run.calls[:3])


# -- several engines -------------------------------------------------------------------------------------------


def judged(run):
    drafts = yield run.all(run.generate(run.problem, "draft", n) for n in (30, 60))
    return (yield run.generate(run.problem + run.text(drafts), "verdict", 4, role="judge"))


def test_a_role_may_be_played_by_another_engine():
    from simulator.strategies import Strategy

    strategy = Strategy("own", "own", "", "", _problem(), (), (), judged, {"judge": "says which"})
    from strategy_rig import fly_fake

    alone, apart = fly_fake(strategy), fly_fake(strategy, roles=("judge",))
    shared = fly_fake(strategy, roles=("judge",), shares_gpu=True)
    assert [call.engine for call in alone.calls] == ["", "", ""]
    assert [call.engine for call in apart.calls] == ["main", "main", "judge"]
    assert alone.calls[2].cached_tok > 0 and apart.calls[2].cached_tok == 0
    # a GPU of its own idles while the other works; engines on one GPU idle together
    idle = PHYSICS.idle_power_w * apart.wall_s
    assert apart.energy_j == pytest.approx(shared.energy_j + idle, rel=1e-9)
    assert apart.wall_s == pytest.approx(shared.wall_s)
    assert [use.calls for use in apart.engines] == [2, 1]
    assert np.dot(apart.power_w, np.diff(apart.power_times_s)) == pytest.approx(apart.energy_j)


def _problem():
    from simulator.strategies.registry import COMMON

    return COMMON


def test_engines_on_one_gpu_take_turns():
    from strategy_rig import fly_fake

    from simulator.strategies import Strategy

    def side_by_side(run):
        mine = run.start([run.generate(run.problem, "mine", 101)])
        yours = yield run.all([run.generate(run.problem, "yours", 51, role="judge")])
        yield run.all(mine)
        return yours

    strategy = Strategy("own", "own", "", "", _problem(), (), (), side_by_side, {"judge": "says which"})
    apart = fly_fake(strategy, roles=("judge",), problem_tok=96)
    shared = fly_fake(strategy, roles=("judge",), problem_tok=96, shares_gpu=True)
    alone = [PHYSICS.prefill_s(96) + sum(PHYSICS.decode_s([96 + j]) for j in range(n)) for n in (100, 50)]
    assert [call.finished_s for call in apart.calls] == pytest.approx(alone)
    assert shared.wall_s == pytest.approx(sum(alone))
    both = 2 * PHYSICS.prefill_s(96) + sum(2 * PHYSICS.decode_s([96 + j]) for j in range(50))
    assert shared.calls[1].finished_s == pytest.approx(both)
    assert sum(use.busy_s for use in shared.engines) == pytest.approx(shared.wall_s)


def test_replicas_share_the_calls_and_each_reads_the_prompt():
    from strategy_rig import fly_fake

    one = fly_fake("self_consistency", samples=8, thinking_tok="100", problem_tok=160)
    four = fly_fake("self_consistency", samples=8, thinking_tok="100", problem_tok=160, replicas=4)
    assert [use.calls for use in four.engines] == [2, 2, 2, 2]
    assert one.computed_tok == 160 + 7 * 16 and four.computed_tok == 4 * (160 + 16)
    assert four.wall_s < one.wall_s


# -- many questions ----------------------------------------------------------------------------------------------


def test_questions_share_the_engine_within_their_concurrency():
    from strategy_rig import fly_fake

    alone = fly_fake("single", thinking_tok="100", problem_tok=160)
    serial = fly_fake("single", thinking_tok="100", problem_tok=160, questions=5, concurrency=1)
    at_once = fly_fake("single", thinking_tok="100", problem_tok=160, questions=5)
    assert serial.wall_s == pytest.approx(5 * alone.wall_s)
    assert [q.latency_s for q in serial.questions] == pytest.approx([alone.wall_s] * 5)
    assert [q.started_s for q in at_once.questions] == [0.0] * 5
    assert alone.wall_s < at_once.wall_s < serial.wall_s
    for flight in (serial, at_once):
        assert sum(q.written_tok for q in flight.questions) == flight.written_tok == 5 * alone.written_tok
        assert sum(q.b_total_tok for q in flight.questions) == flight.b_total_tok
        # Little: questions in work x time = their latencies
        assert sum(q.latency_s for q in flight.questions) <= 5 * flight.wall_s + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_the_same_questions_whatever_the_concurrency(number, concurrency, seed):
    from strategy_rig import fly_fake

    options = {"thinking_tok": "uniform:5:60", "answer_tok": "3", "problem_tok": "uniform:20:80", "seed": seed}
    one = fly_fake("single", questions=number, concurrency=1, **options)
    many = fly_fake("single", questions=number, concurrency=concurrency, **options)
    assert sorted(c.output_tok for c in one.calls) == sorted(c.output_tok for c in many.calls)
    assert many.wall_s <= one.wall_s * (1 + 1e-9)


# -- stretches against single steps --------------------------------------------------------------------------------


def wild(choices):
    """A strategy of random words."""

    def strategy(run):
        alive, last = [], []
        for kind, tokens, n in choices:
            if kind == "fork":
                alive += run.start(run.samples(n, run.problem, "fork", f"uniform:{tokens}:{2 * tokens}"))
            elif kind == "any" and alive:
                done = yield run.any(alive, min(n, len(alive)))
                run.stop(alive)
                last = done
                yield run.all(alive)
                alive = []
            elif kind == "mark" and alive:
                yield run.written(alive[:n], tokens)
                run.stop(alive[:1])
            elif kind == "wait":
                yield run.wait(tokens / 100.0, "tool")
            elif kind == "judge":
                last = [(yield run.generate(run.problem + run.text(last), "judge", tokens, role="judge"))]
            elif kind == "crew":
                last = yield run.together(run.generate(run.problem, "crew", tokens) for _ in range(n))
            elif kind == "join":
                kept = yield run.all(run.samples(n, run.problem, "kept", tokens, keep=True))
                last = [(yield run.generate(run.problem, "join", tokens, attend=kept))]
                run.release(kept)
            elif kind == "chains":
                last = yield run.branches([_chain(run, tokens, i + 1) for i in range(n)])
        yield run.all(alive)
        return (yield run.generate(run.problem + run.text(last), "answer", 7))

    return strategy


def _chain(run, tokens, length):
    for _ in range(length):
        call = yield run.generate(run.problem, "chain", tokens)
    return call


WORDS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "any", "mark", "wait", "judge", "crew", "join", "chains"]),
        st.integers(1, 120),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.sampled_from([60, 200, 100_000]), st.sampled_from([4, 64]), st.sampled_from(["", "apart", "shared"]))
def test_stretches_and_single_steps_give_the_same_flight(words, blocks, seats, judge):
    from strategy_rig import fly_fake

    from simulator.strategies import Strategy

    strategy = Strategy("own", "own", "", "", _problem(), (), (), wild(words), {"judge": "says which"})
    options = {
        "kv_tok": 16 * blocks, "engine": {"max_num_seqs": seats, "max_num_batched_tokens": 512}, "problem_tok": 50,
        "roles": ("judge",) if judge else (), "shares_gpu": judge == "shared",
    }  # fmt: skip
    flights = []
    for step_by_step in (False, True):
        try:
            flights.append(fly_fake(strategy, step_by_step=step_by_step, **options))
        except UserError as error:
            flights.append(str(error))
    fast, slow = flights
    if isinstance(fast, str):
        assert fast == slow
        return
    assert fast.wall_s == pytest.approx(slow.wall_s, rel=1e-9)
    assert fast.energy_j == pytest.approx(slow.energy_j, rel=1e-9)
    assert [c.output_tok for c in fast.calls] == [c.output_tok for c in slow.calls]
    assert [c.finished_s for c in fast.calls] == pytest.approx([c.finished_s for c in slow.calls], rel=1e-9)
    assert [c.preemptions for c in fast.calls] == [c.preemptions for c in slow.calls]
    assert np.dot(fast.power_w, np.diff(fast.power_times_s)) == pytest.approx(fast.energy_j, rel=1e-9)


def test_what_branches_draw_does_not_depend_on_which_is_faster():
    def chain(run, first):
        yield run.generate(run.problem, "first", first)
        return (yield run.generate(run.problem, "second", "uniform:1:1000"))

    def both(lengths):
        def strategy(run):
            return (yield run.branches([chain(run, tokens) for tokens in lengths]))

        return [call.output_tok for call in carry_out(strategy).answer]

    assert both((10, 500)) == both((500, 10))


@pytest.mark.parametrize("tokens", [1, 7, 64, 500])
def test_stretches_of_passes_know_when_the_first_token_is_there(tokens):
    def diffuse(run):
        return (yield run.passes(run.problem, "text", tokens, [Pass(10, 164), Pass(50, 64, 100, 8)]))

    fast, slow = carry_out(diffuse).calls[0].record, carry_out(diffuse, step_by_step=True).calls[0].record
    assert fast.first_token_s == pytest.approx(slow.first_token_s, rel=1e-12)
    assert fast.finished_s == pytest.approx(slow.finished_s, rel=1e-12)


# -- what a review found ---------------------------------------------------------------------------------------------


def test_answers_that_read_kept_kv_do_not_queue_behind_fresh_questions():
    from strategy_rig import fly_fake

    options = {"kv_tok": 16 * 400, "problem_tok": 64, "paths": 4, "thinking_tok": 100, "marker_tok": 1}
    flight = fly_fake("parathinker", questions=40, engine={"max_num_seqs": 32}, **options)
    assert len(flight.questions) == 40
    with pytest.raises(
        UserError, match="or fewer questions at a time"
    ):  # all paths at once leave no room for a summary
        fly_fake("parathinker", questions=40, **options)


def test_a_team_needs_room_for_its_common_prompt_once():
    def crew(run):
        headers = [run.instruction(f"w{i}", 4) for i in range(4)]
        return (yield run.together(run.generate(run.problem + header, "worker", 50) for header in headers))

    assert len(carry_out(crew, problem_tok=400, kv_tok=992).calls) == 4


def test_teams_side_by_side_read_their_caches_once_each():
    def two(run):
        def team(name):
            return (yield run.together(run.generate(Text.of(name, 96), "worker", 30) for _ in range(3)))

        return [call for team in (yield run.branches([team("a"), team("b")])) for call in team]

    run = carry_out(two)
    shared = PHYSICS.verifying(3)
    # both teams are prefilled in one step; then each reads its prompt and all that it has written
    steps = sum(shared.step(Batch((), np.array([96 + 3 * j] * 2))).seconds for j in range(29))
    assert run.calls[0].record.finished_s == pytest.approx(PHYSICS.prefill_s(2 * (96 + 2 * 16)) + steps, rel=1e-9)


def test_what_never_started_has_read_nothing():
    from strategy_rig import fly_fake

    from simulator.strategies import Strategy

    def race(run):
        calls = run.samples(4, run.problem, "path", 10)
        yield run.any(calls)
        run.stop(calls)
        return (yield run.all(calls))

    strategy = Strategy("own", "own", "", "", _problem(), (), (), race)
    flight = fly_fake(strategy, problem_tok=440, engine={"max_num_seqs": 1})
    assert flight.read_tok == flight.computed_tok == 440
    assert flight.b_total_tok == 450


@pytest.mark.parametrize("step_by_step", [False, True])
def test_a_mark_that_was_passed_fires_at_once(step_by_step):
    def late(run):
        (call,) = run.start([run.generate(run.problem, "a", 100)])
        yield run.wait(0.3051, "think")
        yield run.written([call], 5)
        probe = yield run.generate(run.problem, "probe", 1)
        yield call
        return probe

    assert records(carry_out(late, step_by_step=step_by_step), "probe")[0].submitted_s == 0.3051


def test_a_team_goes_to_one_replica_and_keeps_what_its_members_attend_to():
    def crew(run):
        first = yield run.generate(run.problem, "first", 100, keep=True)
        return (yield run.together(run.generate(run.problem, "w", 20, attend=[first]) for _ in range(3)))

    run = carry_out(crew, replicas=4)
    assert len({call.server for call in run.calls}) == 1
    assert all(len(call.sequence.attended) == 3 for call in run.calls[1:])

    def loose(run):
        return (yield run.together(run.generate(run.problem, "w", 20) for _ in range(3)))

    assert len({call.server for call in carry_out(loose, replicas=4).calls}) == 1


def test_shared_kv_of_several_attended_calls_is_read_once():
    def join(run):
        common = run.problem + run.instruction("common", 480)
        kept = yield run.all(run.samples(4, common, "kept", 33, keep=True))
        return (yield run.generate(run.problem, "reader", 5, attend=kept))

    run = carry_out(join, problem_tok=96)
    assert run.calls[-1].sequence.attended_tok() == 480 + 4 * 32


def test_stopped_while_waiting_for_its_turn_it_writes_nothing():
    from strategy_rig import fly_fake

    from simulator.strategies import Strategy

    def turns(run):
        mine = run.start([run.generate(run.problem, "mine", 50)])
        yield run.written(mine, 3)
        (judge,) = run.start([run.generate(run.problem, "judge", 10, role="judge")])
        yield run.wait(0.001, "think")
        run.stop([judge])
        yield run.all([judge, *mine])
        return mine

    strategy = Strategy("own", "own", "", "", _problem(), (), (), turns, {"judge": "says which"})
    flight = fly_fake(strategy, roles=("judge",), shares_gpu=True)
    (judge,) = [call for call in flight.calls if call.label == "judge"]
    assert judge.stopped and judge.output_tok == 0


def test_kv_stays_while_somebody_reads_it():
    held = []

    def plan(run):
        kept = yield run.generate(run.problem, "kept", 160, keep=True)
        (reader,) = run.start([run.generate(Text.of("other", 16), "reader", 40, attend=[kept])])
        run.release([kept])
        yield run.wait(0.1, "think")
        held.append(kept.server.cache.held)
        yield reader
        held.append(kept.server.cache.held)
        return reader

    carry_out(plan, problem_tok=96)
    assert held[0] >= 16 and held[1] == 0


def test_the_same_call_twice_in_a_barrier_is_one_call():
    def twice(run):
        call = run.generate(run.problem, "a", 5)
        return (yield run.all([call, call]))

    assert len(carry_out(twice).calls) == 1


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (
            lambda run: run.generate(run.problem, "a", 5, role="jugde"),
            ValueError,
            "role 'jugde'; the strategy's roles: none",
        ),
        (
            lambda run: run.release([run.generate(run.problem, "a", 5)]),
            RuntimeError,
            "is released before it was submitted",
        ),
        (lambda run: run.graph([Node(None, (), count=0)]), ValueError, "waits for 0 of 0"),
        (lambda run: run.graph([Node(lambda _: [])]), ValueError, "made no calls"),
    ],
)
def test_further_mistakes_are_named(mistake, error, words):
    def strategy(run):
        yield mistake(run)

    with pytest.raises(error, match=words):
        carry_out(strategy)
