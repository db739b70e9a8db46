"""SCALE: a problem in sub-problems, of which only the hard ones are thought about."""

from __future__ import annotations

from simulator.schedule.text import Text
from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths

TABLES = "Qwen3-32B on AIME24"


@strategy(
    title="selective thinking about sub-problems (SCALE)",
    source="arXiv:2512.00466",
    parameters={
        "outlines": published(
            "decompositions that are written, of which one is chosen", "the authors' code and Figure 1"
        ),
        "outline_tok": assumed("tokens of a decomposition", "seven steps of one or two lines each"),
        "subproblems": assumed(
            "sub-problems in the mean, the whole question last; whole numbers next to it occur",
            f"derived: 25,581 tokens over 3,550 per sub-problem, {TABLES}, Table 1",
            1,
            256,
        ),
        "hard_share": published(
            "share of sub-problems with a difficulty above the threshold tau, which are thought about",
            f"75.61 % at tau = 0.2, {TABLES}, Table 2",
        ),
        "thinking_tok": assumed(
            "tokens that a hard sub-problem is thought about",
            f"derived: 8.2k tokens at tau = 0.9 (none hard), 22.5k at 0.2, {TABLES}, Table 2; the spread is assumed",
        ),
        "solution_tok": assumed(
            "tokens of the solution of a sub-problem, which later prompts read",
            f"derived: 8.2k tokens at tau = 0.9, where none is hard, {TABLES}, Table 2; the spread is assumed",
        ),
        "score_tok": assumed(
            "tokens of a difficulty score", "a number such as 0.35; the limit is 64 (published)", most=64
        ),
        "instruction_tok": assumed("tokens of each instruction", "the authors' templates have 100 to 300 tokens"),
        "step_tok": assumed("tokens that state a sub-problem", "one or two lines"),
    },
    assumptions=(
        "every call waits for the one before it, outlines and scores included, as in the authors' code",
        "instructions stand before the problem, so calls of different kinds share no KV cache",
        "no answer is malformed, so nothing is asked twice",
        "the last sub-problem is the question itself and hard unless none is (published: its score is set to 0.9)",
    ),
    aliases=("dual_thinking",),
)
def scale(
    run,
    outlines: int = 8,
    outline_tok: Lengths = "lognormal:256:0.3",
    subproblems: float = 7.2,
    hard_share: Share = 0.756,
    thinking_tok: Lengths = "lognormal:2624:0.5",
    solution_tok: Lengths = "lognormal:1139:0.3",
    score_tok: int = 6,
    instruction_tok: int = 192,
    step_tok: int = 32,
):
    """SCALE (arXiv:2512.00466): without thinking, the model writes eight decompositions of the problem, chooses one,
    and scores the difficulty of each sub-problem. Then it solves them one after the other; a prompt holds the problem
    and the sub-problems before it with their solutions. A sub-problem above the threshold is thought about first; the
    thoughts are dropped from later prompts, whose KV cache ends before that solution.
    """
    count = int(subproblems) + run.chance(subproblems % 1.0)
    outline, choose, score, solved = (
        run.instruction(name, instruction_tok) + run.problem for name in ("outline", "choose", "score", "solve")
    )
    plans = []
    for _ in range(outlines):
        plans.append((yield run.generate(outline, "outline", outline_tok)))
    yield run.generate(choose + run.text(plans), "choose", score_tok)
    steps = [run.instruction(f"sub-problem {number}", step_tok) for number in range(count)]
    for number in range(count):
        yield run.generate(sum(steps[: number + 1], score), "score", score_tok)
    for number, step in enumerate(steps):
        hard = run.chance(hard_probability(number == count - 1, count, hard_share))
        thinking, solution = thinking_tok.draw(run.rng) if hard else 0, solution_tok.draw(run.rng)
        solve = yield run.generate(solved + step, "solve", thinking + solution)
        kept = Text.of(("solution", number), solution) if thinking else run.text(solve)
        solved += step + kept
    return solve


def hard_probability(last: bool, count: int, hard_share: float) -> float:
    """Probability that a sub-problem is hard: in the mean `hard_share` of `count` are, the last one before others."""
    hard = hard_share * count
    if last:
        return min(1.0, hard)
    return max(0.0, hard - 1.0) / (count - 1)
