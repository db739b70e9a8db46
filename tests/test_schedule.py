"""The language of schedules: order, barriers, token accounts, determinism, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import simpy
from fake_physics import FakeStepModel

from simulator.engine import EngineSettings, Server
from simulator.errors import UserError
from simulator.schedule import Run, Text

PHYSICS = FakeStepModel()


def carry_out(strategy, problem_tok=100, seed=0, **engine):
    """The run of a strategy (a generator function of `run`) on a fresh server."""
    env = simpy.Environment()
    server = Server(env, PHYSICS, EngineSettings(**engine), 5000)
    run = Run(server, np.random.default_rng(seed), problem_tok)
    env.run(until=env.process(run.drive(strategy(run))))
    return run


def by_label(run, label):
    return [call.record for call in run.calls if call.label == label]


def test_texts_add_up_and_keep_their_parts():
    a, b = Text.of("a", 3), Text.of("b", 4)
    assert (a + b).parts == (("a", 3), ("b", 4))
    assert (a + b + Text()).tokens == 7
    assert Text.of("a", 0) == Text()
    with pytest.raises(TypeError):
        a + "b"
    with pytest.raises(ValueError, match="-1 tokens"):
        Text.of("a", -1)


def test_barrier_lasts_as_long_as_its_slowest_call():
    def fork(run):
        drafts = yield run.all(run.generate(run.problem, "draft", n) for n in (10, 80, 30))
        return (yield run.generate(run.problem + run.text(drafts), "join", 5))

    run = carry_out(fork)
    drafts, (join,) = by_label(run, "draft"), by_label(run, "join")
    assert join.submitted_s == max(d.finished_s for d in drafts) == drafts[1].finished_s
    assert join.scheduled_s == join.submitted_s
    assert join.prompt_tok == 100 + 10 + 80 + 30
    assert join.parents == (0, 1, 2)


def test_token_accounts_by_hand():
    def plan(run):
        drafts = yield run.all(run.generate(run.problem, "draft", n) for n in (10, 80, 30))
        notes = yield run.generate(run.problem + run.text(drafts[::2]), "notes", 7)
        return (yield run.generate(run.problem + run.text(notes), "answer", 20))

    run = carry_out(plan)
    assert run.critical_path_tok() == 80 + 7 + 20
    # each call reads the problem again; the notes read two drafts, the answer the notes
    assert run.reread_tok() == 2 * 100 + (100 + 10 + 30) + (100 + 7)
    # notes read drafts 0 and 2, of which 2 is the longer: the path does not go through draft 1
    assert [call.call_id for call in run.accepted_path()] == [4, 3, 2]


def test_accepted_path_goes_through_the_call_the_strategy_names():
    def plan(run):
        drafts = yield run.all(run.generate(run.problem, "draft", n) for n in (10, 80, 30))
        run.accept(drafts[0])
        return (yield run.generate(run.problem + run.text(drafts), "answer", 20))

    assert [call.call_id for call in carry_out(plan).accepted_path()] == [3, 0]


def test_a_vote_is_accepted_through_its_longest_call():
    def vote(run):
        return (yield run.all(run.generate(run.problem, "sample", n) for n in (10, 80, 30)))

    assert [call.call_id for call in carry_out(vote).accepted_path()] == [1]


def test_overlapping_barriers_run_together_and_both_become_parents():
    def overlap(run):
        left = run.all([run.generate(run.problem, "left", 40)])
        right = run.all([run.generate(run.problem, "right", 90)])
        (first,) = yield left
        late = yield run.generate(run.problem + run.text(first), "late", 10)
        yield right
        return (yield run.generate(run.problem + run.text(late), "answer", 5))

    run = carry_out(overlap)
    assert [call.record.submitted_s for call in run.calls[:2]] == [0.0, 0.0]
    assert run.calls[2].record.parents == (0,)
    assert set(run.calls[3].record.parents) == {1, 2}
    assert run.critical_path_tok() == 90 + 5


def test_instructions_of_one_name_are_the_same_tokens():
    def ask(run):
        order = run.instruction("order", 64)
        yield run.generate(order + run.problem, "a", 3)
        yield run.generate(run.instruction("order", 64) + run.instruction("x", 30), "b", 3)
        return (yield run.generate(run.instruction("other", 64) + run.problem, "c", 3))

    assert [call.record.cached_tok for call in carry_out(ask).calls] == [0, 64, 0]


def test_lengths_are_drawn_in_order_of_submission_whatever_the_timing():
    def fork(run):
        drafts = yield run.all(run.generate(run.problem, "draft", "uniform:1:400") for _ in range(6))
        return (yield run.generate(run.problem + run.text(drafts), "join", "uniform:1:400"))

    expected = np.random.default_rng(5)
    expected = [int(expected.integers(1, 400, endpoint=True)) for _ in range(7)]
    for engine in ({}, {"max_num_seqs": 2}, {"enable_prefix_caching": False}):
        assert [call.output_tok for call in carry_out(fork, seed=5, **engine).calls] == expected


def test_max_tok_cuts_the_drawn_length():
    def plan(run):
        return (yield run.generate(run.problem, "answer", 500, max_tok=120))

    assert carry_out(plan).calls[0].output_tok == 120


def test_pick_is_seeded_and_fair():
    def choose(run):
        calls = yield run.all(run.generate(run.problem, "sample", 2) for _ in range(4))
        return run.pick(calls)

    chosen = [carry_out(choose, seed=s).answer[0].call_id for s in range(200)]
    assert chosen == [carry_out(choose, seed=s).answer[0].call_id for s in range(200)]
    assert min(chosen.count(i) for i in range(4)) > 25


def test_an_empty_barrier_does_not_wait():
    def plan(run):
        assert (yield run.all([])) == []
        return (yield run.generate(run.problem, "answer", 3))

    assert carry_out(plan).calls[0].record.submitted_s == 0.0


def test_waiting_twice_gives_the_same_finished_call():
    def plan(run):
        first = yield run.generate(run.problem, "answer", 3)
        assert (yield first) is first
        return first

    assert len(carry_out(plan).calls) == 1


def _yields_list(run):
    yield [run.generate(run.problem, "draft", 3)]


def _returns_nothing(run):
    yield run.generate(run.problem, "draft", 3)


def _forgets_a_call(run):
    run.generate(run.problem, "forgotten", 3)
    return (yield run.generate(run.problem, "draft", 3))


def _leaves_early(run):
    run.all([run.generate(run.problem, "abandoned", 90)])
    return (yield run.generate(run.problem, "draft", 3))


def _reads_too_early(run):
    draft = run.generate(run.problem, "draft", 3)
    yield run.generate(run.problem + run.text(draft), "reader", 3)


def _empty_prompt(run):
    yield run.generate(run.empty(), "draft", 3)


def _text_as_string(run):
    yield run.generate("the problem", "draft", 3)


def _all_of_texts(run):
    yield run.all([run.problem])


def _bad_length(run):
    yield run.generate(run.problem, "draft", "lognormal:5")


def _zero_max_tok(run):
    yield run.generate(run.problem, "draft", 5, max_tok=0)


@pytest.mark.parametrize(
    ("strategy", "error", "expected"),
    [
        (_yields_list, TypeError, r"yielded list, expected run.generate\(...\) or run.all"),
        (_returns_nothing, TypeError, "returned None, expected the finished call"),
        (_forgets_a_call, RuntimeError, "'forgotten'.* and never waited for it"),
        (_leaves_early, RuntimeError, "returned before it had waited for .*'abandoned'"),
        (_reads_too_early, RuntimeError, "'draft' is not finished: wait for it"),
        (_empty_prompt, ValueError, "call 'draft': the prompt is empty"),
        (_text_as_string, TypeError, "the prompt is str, expected a Text"),
        (_all_of_texts, TypeError, "run.all got Text"),
        (_bad_length, UserError, "lognormal:MEAN:SIGMA"),
        (_zero_max_tok, ValueError, "max_tok is 0"),
    ],
)
def test_mistakes_in_a_strategy_are_named(strategy, error, expected):
    with pytest.raises(error, match=expected):
        carry_out(strategy)


def test_a_wrong_yield_is_reported_at_the_yield():
    with pytest.raises(TypeError) as caught:
        carry_out(_yields_list)
    assert "_yields_list" in [entry.name for entry in caught.traceback]
