"""Strategies that judge and search: calls in closed form, rounds, shared prefixes, roles, and their own rules."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_rig import fly_fake

from simulator.errors import UserError
from simulator.schedule import Text
from simulator.strategies.beam_search import search
from simulator.strategies.qalign import acceptance, rest_tok
from simulator.strategies.v1 import Tournament, rate
from simulator.workload.lengths import Fixed, parse_lengths

SMALL = {"problem_tok": 160, "thinking_tok": 90, "answer_tok": 10}
EACH = {
    "best_of_n": {**SMALL, "samples": 3},
    "v1": {**SMALL, "samples": 6, "verdict_tok": "uniform:20:60"},
    "qalign": {"steps": 12, "chains": 2},
    "hedged": {**SMALL},
    "beam_search": {"samples": 8, "depth": 6},
    "lookahead": {"samples": 8, "depth": 4},
    "evolve": {"generations": 3, "population": 4},
    "parallel_search": {"queries": "uniform:1:5"},
}


def labels(flight) -> Counter:
    """How many calls of each label."""
    return Counter(call.label for call in flight.calls)


def with_label(flight, label: str) -> list:
    return [call for call in flight.calls if call.label == label]


def rounds(calls) -> list[list]:
    """Calls or records that were submitted together, in order of time."""
    found: dict[float, list] = {}
    for call in calls:
        found.setdefault(getattr(call, "record", call).submitted_s, []).append(call)
    return [found[time] for time in sorted(found)]


def blocks(tokens: int) -> int:
    """Tokens of a prompt that can be cache hits when all of it is known: whole blocks, and one token is computed."""
    return (tokens - 1) // 16 * 16


# -- all of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_step_by_step_and_again_give_the_same_flight(name):
    first, again = fly_fake(name, seed=3, **EACH[name]), fly_fake(name, seed=3, **EACH[name])
    assert first.calls == again.calls
    slow = fly_fake(name, seed=3, step_by_step=True, **EACH[name])
    assert slow.wall_s == pytest.approx(first.wall_s, rel=1e-9)
    assert [c.output_tok for c in slow.calls] == [c.output_tok for c in first.calls]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accounts_and_order(name, seed):
    f = fly_fake(name, seed=seed, **EACH[name])
    ended = {node.call_id: node.finished_s for node in (*f.calls, *f.waits)}
    for call in f.calls:
        assert all(ended[parent] <= call.submitted_s for parent in call.parents)
    assert f.b_total_tok == sum(c.prompt_tok + c.output_tok for c in f.calls)
    assert 0 < f.b_seq_tok <= f.b_total_tok
    assert 0 < f.critical_path_tok <= f.written_tok


@pytest.mark.parametrize("name", EACH)
def test_what_is_written_does_not_depend_on_speed(name):
    """The same seed on a faster or fuller machine is the same work: draws do not depend on who ends first."""
    roomy = fly_fake(name, seed=5, **EACH[name])
    narrow = fly_fake(name, seed=5, engine={"max_num_seqs": 2, "enable_prefix_caching": False}, **EACH[name])

    def work(flight):
        return sorted((c.label, c.prompt_tok, c.output_tok) for c in flight.calls)

    assert work(roomy) == work(narrow)
    assert roomy.wait_s == pytest.approx(narrow.wait_s)
    assert roomy.wall_s <= narrow.wall_s


@pytest.mark.parametrize(
    ("name", "parameters", "role", "label"),
    [
        ("best_of_n", {}, "reward", "judge"),
        ("v1", {}, "judge", "judge"),
        ("qalign", {}, "reward", "score"),
        ("hedged", {"selector": "chops"}, "judge", "judge"),
        ("hedged", {"selector": "reward"}, "reward", "score"),
        ("beam_search", {}, "reward", "score"),
        ("lookahead", {}, "reward", "score"),
    ],
)
def test_another_model_plays_its_role_and_nothing_else(name, parameters, role, label):
    f = fly_fake(name, roles=(role,), **{**EACH[name], **parameters})
    assert {c.engine for c in f.calls if c.label == label} == {role}
    assert {c.engine for c in f.calls if c.label != label} == {"main"}
    assert labels(f) == labels(fly_fake(name, **{**EACH[name], **parameters}))


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("v1", {"samples": 1}, "parameter 'samples': found '1', expected a whole number >= 2"),
        ("v1", {"samples": 3, "min_degree": 3}, "parameter 'min_degree': found 3, expected less than samples = 3"),
        ("v1", {"weight_floor": 2}, "parameter 'weight_floor'.*from 0 to 1"),
        ("v1", {"budget_multiplier": -1}, "parameter 'budget_multiplier'.*>= 0"),
        ("qalign", {"beta": 0}, "parameter 'beta': found '0'"),
        ("qalign", {"steps": 10_000}, "parameter 'steps'.*at most 4,096"),
        ("hedged", {"selector": "vote"}, "parameter 'selector': found 'vote', expected one of chops, reward, mbr"),
        ("hedged", {"similarity_s": "soon"}, "parameter 'similarity_s'"),
        ("beam_search", {"samples": 10, "width": 4}, "parameter 'width': found 4, expected a divisor of samples = 10"),
        ("beam_search", {"samples": 4, "width": 8}, "parameter 'width': found 8, expected a divisor of samples = 4"),
        ("lookahead", {"samples": 6, "width": 4}, "parameter 'width': found 4"),
        ("lookahead", {"lookahead": -1}, "parameter 'lookahead'.*>= 0"),
        ("evolve", {"population": 2, "parents": 3}, "'parents': found 3, expected at most population = 2"),
        ("evolve", {"compile_rate": 1.5}, "parameter 'compile_rate'.*from 0 to 1"),
        ("parallel_search", {"mode": "both"}, "parameter 'mode': found 'both', expected one of parallel, sequential"),
        ("parallel_search", {"queries": 0}, "parameter 'queries'"),
    ],
)
def test_bad_parameters_are_one_sentence(name, parameters, expected):
    with pytest.raises(UserError, match=expected) as caught:
        fly_fake(name, **parameters)
    assert "\n" not in str(caught.value)


# -- best of n -----------------------------------------------------------------------------------------------


def test_a_judge_of_its_own_reads_the_samples_for_the_first_time():
    f = fly_fake("best_of_n", roles=("reward",), **SMALL, samples=3, instruction_tok=32)
    # it has seen the problem in the first of its prompts, and no sample before
    assert [c.cached_tok for c in with_label(f, "judge")] == [0, 160, 160]
    assert [c.cached_tok for c in with_label(fly_fake("best_of_n", **SMALL, samples=3), "judge")] == [256] * 3


# -- V1 ------------------------------------------------------------------------------------------------------


def test_v1_spends_its_budget_in_six_rounds_or_seven():
    f = fly_fake("v1", **SMALL, instruction_tok=300)
    assert labels(f) == {"solution": 16, "judge": 48}
    judges = with_label(f, "judge")
    assert {c.prompt_tok for c in judges} == {300 + 160 + 2 * 100}
    sizes = [len(found) for found in rounds(judges)]
    assert sizes[0] == 8 and max(sizes) == 8 and 6 <= len(sizes) <= 7  # 16 x 3 / 8, or a round for two left over
    for earlier, later in pairwise(rounds(judges)):
        assert max(c.finished_s for c in earlier) <= later[0].submitted_s


def test_v1_judges_share_the_first_solution_at_most():
    f = fly_fake("v1", **SMALL, instruction_tok=304)
    judges = with_label(f, "judge")
    assert judges[0].cached_tok == 0  # nothing of the generation, whose prompt begins otherwise
    # afterwards always instructions and problem, and behind them the first solution where it has been first before
    assert {c.cached_tok for c in judges[1:8]} == {464}
    assert {c.cached_tok for c in judges[8:]} <= {464, 560, blocks(664)}
    assert sum(c.cached_tok >= 560 for c in judges) > 8


def test_v1_accounts_by_hand():
    """Two solutions meet once, and then nobody is left to meet."""
    f = fly_fake("v1", **SMALL, samples=2, min_degree=1, verdict_tok=20, instruction_tok=40)
    assert labels(f) == {"solution": 2, "judge": 1}
    assert f.critical_path_tok == 100 + 20
    assert f.b_seq_tok == (160 + 100) + (40 + 160 + 200 + 20)


@given(st.integers(3, 12), st.floats(0.5, 4.0), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_v1_spends_any_budget_to_the_last_call(samples, budget_multiplier, seed):
    f = fly_fake("v1", **SMALL, samples=samples, budget_multiplier=budget_multiplier, verdict_tok=9, seed=seed)
    assert labels(f) == {"solution": samples, "judge": round(budget_multiplier * samples)}


def test_the_accepted_path_of_v1_begins_with_the_winner():
    begins = set()
    for seed in range(20):
        run = fly_fake("v1", problem_tok=160, thinking_tok="uniform:20:900", answer_tok=10, seed=seed, run=True)
        path = run.accepted_path()
        assert [call.label for call in path] == ["judge"] * (len(path) - 1) + ["solution"]
        assert {path[-1]} == run.accepted
        begins.add(path[-1].call_id)
    assert len(begins) > 8  # of 16 solutions


def test_v1_without_a_budget_judges_nothing():
    assert labels(fly_fake("v1", **SMALL, samples=4, budget_multiplier=0)) == {"solution": 4}


@given(st.integers(3, 24), st.integers(1, 3), st.integers(1, 8), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_rules_of_the_tournament(samples, min_degree, window, seed):
    min_degree = min(min_degree, samples - 1)
    rng = np.random.default_rng(seed)
    table = Tournament(samples, min_degree, window, 0.1)
    quality = rng.normal(size=samples)
    met: set[frozenset] = set()
    for _ in range(8):
        covered = all(len(opponents) >= min_degree for opponents in table.opponents)
        ranking = table.ranking()
        pairs = table.next_round(rng)
        players = [player for pair in pairs for player in pair]
        assert pairs and len(set(players)) == len(players)
        for a, b in pairs:
            if covered:
                assert 1 <= ranking.index(b) - ranking.index(a) <= window
            else:
                assert frozenset((a, b)) not in met
            met.add(frozenset((a, b)))
            table.record(a, b, *rate(quality[[a, b]], 0.7, rng))
        assert (table.score >= 0).all() and (table.score <= 1).all()
    assert all(len(opponents) >= min_degree for opponents in table.opponents)


def test_score_is_the_weighted_win_rate():
    table = Tournament(3, 1, 8, 0.1)
    assert table.score.tolist() == [0.5, 0.5, 0.5]
    table.record(0, 1, 10, 1)  # weight 1
    table.record(0, 2, 4, 4)  # a tie, weight 0.1
    table.record(1, 2, 5, 8)  # weight 1/3
    assert table.score == pytest.approx([1.05 / 1.1, 0.0, (0.05 + 1 / 3) / (0.1 + 1 / 3)])
    assert table.ranking() == [0, 2, 1]


def test_near_neighbours_that_have_met_make_way_for_others():
    table = Tournament(4, 1, 8, 0.1)
    table.record(0, 1, 5, 5)
    table.record(2, 3, 7, 7)
    assert table.next_round(np.random.default_rng(0)) == [(0, 2), (1, 3)]  # all scores are 0.5


def test_a_better_judge_finds_a_better_solution():
    def quality_of_winner(noise):
        found = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            quality, table, left = rng.normal(size=16), Tournament(16, 2, 8, 0.1), 48
            while pairs := table.next_round(rng)[:left]:
                for a, b in pairs:
                    table.record(a, b, *rate(quality[[a, b]], noise, rng))
                left -= len(pairs)
            found.append(quality[table.ranking()[0]] - quality.max())
        return float(np.mean(found))

    sharp, usual, blind = quality_of_winner(0.0), quality_of_winner(0.7), quality_of_winner(100.0)
    assert -0.1 < sharp <= 0.0
    assert sharp > usual > blind
    assert blind < -1.2  # the best of 16 lies 1.77 above the mean


def test_random_pairs_are_judged_rightly_four_times_in_five():
    rng = np.random.default_rng(0)
    right = []
    for _ in range(4000):
        quality = rng.normal(size=2)
        a, b = rate(quality, 0.7, rng)
        right.append(0.5 if a == b else float((a > b) == (quality[0] > quality[1])))
    assert np.mean(right) == pytest.approx(0.8, abs=0.03)


# -- QAlign --------------------------------------------------------------------------------------------------


def test_qalign_is_one_long_chain():
    run = fly_fake("qalign", problem_tok=160, answer_tok=200, steps=30, run=True)
    calls = run.calls
    assert [c.label for c in calls] == ["sample", "score", *["rewrite", "score"] * 30]
    for earlier, later in pairwise(calls):
        assert later.parents == (earlier,)
    for rewrite, score in zip(calls[2::2], calls[3::2]):
        assert 160 <= rewrite.prompt.tokens < 160 + 200
        assert rewrite.prompt.tokens + rewrite.output_tok == 160 + 200 == score.prompt.tokens
        assert rewrite.prompt.parts == score.prompt.first(rewrite.prompt.tokens).parts
        # what is kept was read by the score before it, what is scored was just written: both are cache hits
        assert rewrite.record.cached_tok == blocks(rewrite.prompt.tokens)
        assert score.record.cached_tok == blocks(score.prompt.tokens)
    assert run.critical_path_tok() == sum(c.output_tok for c in calls)


def test_a_reward_model_elsewhere_has_read_what_is_kept():
    f = fly_fake("qalign", problem_tok=160, answer_tok=200, steps=30, roles=("reward",))
    scores = with_label(f, "score")
    assert scores[0].cached_tok == 0
    for rewrite, score in zip(with_label(f, "rewrite"), scores[1:]):
        assert rewrite.prompt_tok // 16 * 16 <= score.cached_tok <= rewrite.prompt_tok
    uncached = fly_fake("qalign", problem_tok=160, answer_tok=200, steps=30, engine={"enable_prefix_caching": False})
    assert uncached.computed_tok == uncached.read_tok


def test_qalign_chains_run_side_by_side_and_draw_on_their_own():
    one = fly_fake("qalign", answer_tok="uniform:100:300", steps=20, seed=1)
    three = fly_fake("qalign", answer_tok="uniform:100:300", steps=20, seed=1, chains=3)
    assert labels(three) == {"sample": 3, "score": 3 * 21, "rewrite": 3 * 20}
    assert three.wall_s < 1.6 * one.wall_s
    # the first of three is the same chain as the only one
    assert Counter(c.output_tok for c in one.calls) <= Counter(c.output_tok for c in three.calls)


def test_small_beta_holds_on_to_good_answers():
    def accepted(beta):
        """Rewrites that a later one keeps some of."""
        run = fly_fake("qalign", answer_tok=200, steps=300, beta=beta, run=True)
        rewrites = [call for call in run.calls if call.label == "rewrite"]
        kept = {part for call in rewrites for part, _ in call.prompt.parts}
        return sum(("output", call.call_id) in kept for call in rewrites)

    assert accepted(0.05) < accepted(0.5) < accepted(50.0)


def test_the_rule_of_acceptance():
    assert acceptance(0.0, 0.5, 100, 100) == 1.0
    assert acceptance(5.0, 0.5, 100, 120) == 1.0
    assert acceptance(-0.5, 0.5, 100, 100) == pytest.approx(np.exp(-1.0))
    assert acceptance(0.0, 0.5, 100, 200) == pytest.approx(0.5)
    assert acceptance(-1e9, 1e-6, 100, 100) == 0.0


def test_without_a_reward_the_chain_samples_the_lengths_of_the_model():
    """Metropolis-Hastings leaves the model's own distribution alone when rewards do not matter."""
    rng = np.random.default_rng(0)
    length = parse_lengths("lognormal:200:0.5").at_most(400)
    direct = length.sample(rng, 40_000)
    state, states = length.draw(rng), []
    for _ in range(20_000):
        kept = int(rng.integers(state))
        proposal = kept + rest_tok(length, kept, state, rng)
        if rng.random() < acceptance(0.0, 1.0, state, proposal):
            state = proposal
        states.append(state)
    assert np.mean(states) == pytest.approx(np.mean(direct), rel=0.03)
    assert np.std(states) == pytest.approx(np.std(direct), rel=0.05)


def test_a_rewrite_never_writes_nothing():
    rng = np.random.default_rng(0)
    assert rest_tok(Fixed(50), 49, 50, rng) == 1
    assert rest_tok(Fixed(50), 60, 75, rng) == 15  # no such length exists: the old one is kept


# -- hedged sampling -----------------------------------------------------------------------------------------


def test_chops_reads_all_answers_in_one_call():
    f = fly_fake("hedged", **SMALL, instruction_tok=30, verdict_tok=25)
    assert labels(f) == {"greedy": 1, "sample": 4, "judge": 1}
    judge = f.calls[-1]
    assert judge.prompt_tok == 160 + 5 * 100 + 30
    assert judge.cached_tok == 256  # problem and greedy answer, of whose 260 tokens 259 have KV
    assert f.critical_path_tok == 125
    assert f.b_seq_tok == 260 + judge.prompt_tok + 25


def test_the_selectors_of_hedged_sampling():
    reward = fly_fake("hedged", **SMALL, selector="reward", samples=7)
    assert labels(reward) == {"greedy": 1, "sample": 6, "score": 7}
    assert {(c.prompt_tok, c.cached_tok, c.output_tok) for c in with_label(reward, "score")} == {(260, 256, 1)}
    mbr = fly_fake("hedged", **SMALL, selector="mbr", similarity_s=3)
    assert labels(mbr) == {"greedy": 1, "sample": 4}
    assert [w.label for w in mbr.waits] == ["similarity"]
    assert mbr.wall_s == pytest.approx(max(c.finished_s for c in mbr.calls) + 3.0)
    assert mbr.b_seq_tok == 260


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_one_judge_call_whatever_the_number_of_samples(samples, seed):
    f = fly_fake("hedged", samples=samples, thinking_tok="uniform:20:90", answer_tok=10, seed=seed)
    assert labels(f) == {"greedy": 1, "sample": samples - 1, "judge": 1}
    answers = sum(c.output_tok for c in f.calls[:-1])
    assert f.calls[-1].prompt_tok == 256 + answers + 64


# -- beam search and lookahead -------------------------------------------------------------------------------


class Script:
    """As much of a Run as `search` uses, with scripted scores and ends; a call is the name of what it wrote."""

    problem = Text.of("problem", 10)

    def __init__(self, gains: list[float], ends: list[bool]) -> None:
        self.rng = SimpleNamespace(normal=iter(gains).__next__)
        self._ends = iter(ends)
        self.written: list[tuple[str, ...]] = []  # the steps that each "step" call read

    def empty(self) -> Text:
        return Text()

    def all(self, calls) -> list:
        return list(calls)

    def samples(self, n: int, prompt: Text, label: str, length: object) -> list[str]:
        self.written += [tuple(part for part, _ in prompt.parts[1:])] * n
        return [f"s{i}" for i in range(len(self.written) - n, len(self.written))]

    def text(self, step: str) -> Text:
        return Text.of(step, 5)

    def generate(self, prompt: Text, label: str, length: object, role: str) -> str:
        return "+".join(part for part, _ in prompt.parts[1:])

    def chance(self, probability: float) -> bool:
        return next(self._ends)

    def accept(self, call: str) -> str:
        return call


def answer_of(run: Script, depth: int) -> str:
    """The score call that `search` returns: the names of the steps that it read."""
    asked, value = search(run, 4, 2, depth, Fixed(5), 0.5, 1, rollout_steps=0), None
    while True:
        try:
            value = asked.send(value)
        except StopIteration as stop:
            return stop.value


def test_the_best_beams_are_kept_and_grown():
    run = Script(gains=[0.1, 3.0, 2.0, -1.0, 0.5, 0.4, 1.0, 2.0], ends=[False] * 8)
    # s1 (3.0) and s2 (2.0) are grown; s2's second child reaches 4.0, s1's first only 3.5
    assert answer_of(run, depth=2) == "s2+s7"
    assert run.written == [()] * 4 + [("s1",)] * 2 + [("s2",)] * 2


def test_an_ended_beam_is_an_answer_and_leaves_its_place_empty():
    ends = [False, True, False, False, False, False, True, False]
    run = Script(gains=[0.1, 3.0, 2.0, -1.0, 0.5, 0.4, 0.1, 0.2], ends=ends)
    assert answer_of(run, depth=2) == "s1"  # 3.0, where s2+s4 has 2.5
    assert run.written == [()] * 4 + [("s2",)] * 2
    run = Script(gains=[0.1, 3.0, 2.0, -1.0, 0.5, 0.4, 0.7, 0.2], ends=ends)
    assert answer_of(run, depth=40) == "s2+s4+s6"  # 3.2; it has ended, so no further round
    assert run.written == [()] * 4 + [("s2",)] * 2 + [("s2", "s4")] * 2


BEAM = {"problem_tok": 160, "step_tok": 32, "samples": 8, "width": 4, "depth": 5, "end_rate": 0}


def test_beam_search_in_closed_form():
    f = fly_fake("beam_search", **BEAM)
    assert labels(f) == {"step": 8 * 5, "score": 8 * 5}
    assert f.critical_path_tok == 5 * (32 + 1)
    assert f.written_tok == 8 * 5 * (32 + 1)
    for depth, found in enumerate(rounds(with_label(f, "step"))):
        assert len(found) == 8
        assert {c.prompt_tok for c in found} == {160 + 32 * depth}
        if depth:  # problem and kept steps are there with KV, from the scores that read them
            assert {c.cached_tok for c in found} == {blocks(160 + 32 * depth)}
    for depth, found in enumerate(rounds(with_label(f, "score"))):
        # the step's last token has no KV yet, and one token must be computed: all blocks but the last
        assert {(c.prompt_tok, c.cached_tok) for c in found} == {(192 + 32 * depth, 176 + 32 * depth)}


def test_beams_kept_and_barriers():
    run = fly_fake("beam_search", **{**BEAM, "step_tok": "uniform:10:60"}, run=True)
    steps = [call for call in run.calls if call.label == "step"]
    for depth, found in enumerate(rounds(steps)):
        assert len({call.prompt.parts for call in found}) == (8 // 4 if depth else 1)
    scores = [call for call in run.calls if call.label == "score"]
    for steps_found, scores_found in zip(rounds(steps), rounds(scores)):
        assert max(c.record.finished_s for c in steps_found) <= scores_found[0].record.submitted_s


@pytest.mark.parametrize("name", ["beam_search", "lookahead"])
def test_the_accepted_path_is_that_of_the_best_beam(name):
    for seed in range(5):
        run = fly_fake(name, seed=seed, **{**BEAM, "step_tok": "uniform:10:60"}, run=True)
        path = run.accepted_path()
        labels_found = ("score", "step") if name == "beam_search" else ("score", "rollout", "step")
        assert tuple(call.label for call in path) == labels_found * 5
        for later, earlier in pairwise(call for call in path if call.label == "step"):
            assert later.prompt.parts == (*earlier.prompt.parts, *earlier.text.parts)


def test_a_beam_of_all_candidates_is_one_chain_of_best_steps():
    run = fly_fake("beam_search", **{**BEAM, "width": 8}, run=True)
    steps = [call for call in run.calls if call.label == "step"]
    assert all(len({call.prompt.parts for call in found}) == 1 for found in rounds(steps))


def test_solutions_that_end_at_once_end_the_search():
    for name in ("beam_search", "lookahead"):
        assert labels(fly_fake(name, **{**BEAM, "end_rate": 1})) == {"step": 8, "score": 8}


def test_a_search_costs_as_much_as_its_candidates_written_whole():
    """Section 5.3 of the paper counts beam search as N samples; a solution has 1 / end_rate steps in the mean."""
    found = []
    for seed in range(60):
        f = fly_fake("beam_search", seed=seed, **{**BEAM, "depth": 400, "end_rate": 0.2})
        sizes = [len(calls) for calls in rounds(with_label(f, "step"))]
        assert sizes[0] == 8 and set(sizes) <= {4, 8} and sizes == sorted(sizes, reverse=True)
        assert sizes == [len(calls) for calls in rounds(with_label(f, "score"))]
        found.append(sum(sizes))
    assert np.mean(found) == pytest.approx(8 / 0.2, rel=0.12)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]), st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_beam_search_is_lookahead_of_no_steps(seed, width, end_rate):
    parameters = {**BEAM, "step_tok": "uniform:10:60", "width": width, "end_rate": end_rate}
    beam = fly_fake("beam_search", seed=seed, **parameters)
    ahead = fly_fake("lookahead", seed=seed, lookahead=0, **parameters)
    assert beam.calls == ahead.calls


@pytest.mark.parametrize("k", [1, 3])
def test_lookahead_costs_n_times_k_plus_1_samples(k):
    beam = fly_fake("beam_search", **BEAM)
    f = fly_fake("lookahead", **BEAM, lookahead=k)
    assert labels(f) == {"step": 40, "rollout": 40, "score": 40}
    assert {c.output_tok for c in with_label(f, "rollout")} == {32 * k}

    def written(flight):
        return sum(c.output_tok for c in flight.calls if c.label != "score")

    assert written(f) == (k + 1) * written(beam)
    for depth, found in enumerate(rounds(with_label(f, "score"))):
        assert {c.prompt_tok for c in found} == {160 + 32 * (depth + 1 + k)}
    for depth, found in enumerate(rounds(with_label(f, "step"))):  # the rollouts are thrown away
        assert {c.prompt_tok for c in found} == {160 + 32 * depth}


def test_a_rollout_stops_where_the_solution_ends():
    f = fly_fake("lookahead", **{**BEAM, "end_rate": 0.4, "depth": 1, "samples": 400, "width": 400}, lookahead=3)
    steps = {n: sum(c.output_tok == 32 * n for c in with_label(f, "rollout")) for n in (1, 2, 3)}
    rollouts = len(with_label(f, "rollout"))
    assert sum(steps.values()) == rollouts and 200 < rollouts < 280  # of the 60 % of steps that go on
    assert steps[1] / rollouts == pytest.approx(0.4, abs=0.09)
    assert steps[3] / rollouts == pytest.approx(0.36, abs=0.09)


# -- evolutionary coding -------------------------------------------------------------------------------------

EVOLVE = {"problem_tok": 160, "program_tok": 100, "feedback_tok": 40, "instruction_tok": 20}
RUNS = {"compile_s": 2, "check_s": 5, "profile_s": 3}


def test_evolution_in_closed_form():
    f = fly_fake("evolve", **EVOLVE, **RUNS, generations=3, population=4, compile_rate=1, clean_rate=1)
    assert labels(f) == {"program": 12}
    assert [w.label for w in f.waits].count("profiler") == 12 and len(f.waits) == 36
    assert [c.prompt_tok for c in f.calls] == [180] * 4 + [180 + 140] * 8
    assert f.critical_path_tok == 300
    # the GPU idles while the programs run
    assert f.wall_s == pytest.approx(sum(f.shares_s.values()) + 3 * (2 + 5 + 3))
    for before, after in pairwise(rounds(f.calls)):
        assert len(after) == 4
        assert after[0].submitted_s == pytest.approx(max(c.finished_s for c in before) + 10)


def test_a_program_that_fails_is_not_run_further():
    broken = fly_fake("evolve", **EVOLVE, **RUNS, compile_rate=0)
    assert {w.label for w in broken.waits} == {"compile"} and len(broken.waits) == 30
    racy = fly_fake("evolve", **EVOLVE, **RUNS, compile_rate=1, clean_rate=0)
    assert [w.label for w in racy.waits].count("race detector") == 30 and len(racy.waits) == 60
    mixed = fly_fake("evolve", **EVOLVE, **RUNS, generations=10, population=20)
    counts = {name: sum(w.label == name for w in mixed.waits) for name in ("compile", "race detector", "profiler")}
    assert counts["compile"] == 200
    assert counts["race detector"] == pytest.approx(160, abs=20)
    assert counts["profiler"] == pytest.approx(0.7 * counts["race detector"], abs=20)


def test_children_of_one_parent_share_its_prompt():
    run = fly_fake("evolve", **EVOLVE, **RUNS, generations=2, population=6, parents=2, run=True)
    children = run.calls[6:]
    assert len({call.prompt.parts for call in children}) == 2
    # problem, instruction and the parent's program are cache hits only up to where KV exists; the report is new to
    # the first child of each parent, known to the others
    assert [call.record.cached_tok for call in children[:2]] == [blocks(180 + 100)] * 2
    assert {call.record.cached_tok for call in children[2:]} == {blocks(320)}
    assert all(len(call.parents) == 6 for call in children)  # the last run of every program


@pytest.mark.parametrize("seed", range(8))
def test_parents_are_programs_that_passed_if_there_are_any(seed):
    run = fly_fake("evolve", **EVOLVE, **RUNS, generations=2, population=6, parents=1, seed=seed, run=True)
    passed = set()
    for wait in run.waits:
        if wait.label == "profiler":
            (check,) = wait.parents
            (build,) = check.parents
            passed |= {call.call_id for call in build.parents}
    first = {call.call_id for call in run.calls[:6]}
    (parent,) = {part[1] for call in run.calls[6:] for part, _ in call.prompt.parts if part[0] == "output"}
    assert parent in (passed & first or first)


def test_the_slowest_run_holds_the_generation_up():
    even = fly_fake("evolve", **EVOLVE, compile_s=10, compile_rate=0)
    uneven = fly_fake("evolve", **EVOLVE, compile_s="uniform:0:20", compile_rate=0)
    assert uneven.wall_s > even.wall_s + 6 * 2  # the largest of five is 16.7 in the mean


# -- parallel search -----------------------------------------------------------------------------------------

SEARCH = {"problem_tok": 160, "turn_tok": 48, "passages_tok": 320, "retrieval_s": 2, "split_rate": 1}


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 7])
def test_calls_of_a_search(queries):
    parallel = fly_fake("parallel_search", **SEARCH, queries=queries)
    assert labels(parallel) == {"search": 1, "answer": 1}
    sequential = fly_fake("parallel_search", **SEARCH, queries=queries, mode="sequential")
    assert labels(sequential) == {"search": min(queries, 4), "answer": 1}
    assert len(sequential.waits) == min(queries, 4) and len(parallel.waits) == 1
    assert sequential.wall_s >= parallel.wall_s


def test_the_context_grows_and_stays_in_the_cache():
    f = fly_fake("parallel_search", **SEARCH, queries=3, mode="sequential")
    assert [c.prompt_tok for c in f.calls] == [160 + turn * (48 + 320) for turn in range(4)]
    # what was read and written before has KV, but for the last token written
    assert [c.cached_tok for c in f.calls] == [0, *(blocks(160 + turn * 368 + 48) for turn in range(3))]
    assert f.wait_s == 6 and f.wall_s == pytest.approx(sum(f.shares_s.values()) + 6)
    assert f.critical_path_tok == f.written_tok == 4 * 48


def test_passages_of_a_turn_are_cut_together():
    found = [fly_fake("parallel_search", **SEARCH, queries=n).calls[1].prompt_tok - 160 - 48 for n in (1, 2, 3, 4, 9)]
    assert found == [320, 640, 960, 1000, 1000]


def test_turns_are_cut_and_bounded():
    f = fly_fake("parallel_search", **{**SEARCH, "turn_tok": 900}, queries=6, mode="sequential", turns=2)
    assert [c.output_tok for c in f.calls] == [500, 500, 500]


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_splitting_never_needs_more_calls(seed, split_rate, queries):
    parameters = {**SEARCH, "split_rate": split_rate, "queries": queries, "seed": seed}
    parallel = fly_fake("parallel_search", **parameters)
    sequential = fly_fake("parallel_search", **parameters, mode="sequential")
    assert len(parallel.calls) in (2, len(sequential.calls))
    assert len(parallel.calls) <= len(sequential.calls) == min(queries, 4) + 1
