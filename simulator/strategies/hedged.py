"""Hedged sampling: one greedy answer and a few stochastic ones, and a selector."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, instruction_note, solving_notes
from simulator.strategies.registry import assumed, published, strategy
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds


@strategy(
    title="hedged sampling with selection",
    source="arXiv:2506.20544",
    parameters={
        "samples": published("answers in all, the greedy one among them", "five samples, in the abstract", least=2),
        "selector": published(
            "chops: one judge call reads all answers; reward: one score each; mbr: similarity, without a model",
            "the selector that the paper adds for long-context judges",
            choices=("chops", "reward", "mbr"),
        ),
        **solving_notes,
        "verdict_tok": assumed(
            "tokens that the judge of 'chops' writes: a checklist, then its choice", "a short list; unpublished"
        ),
        "score_tok": assumed("tokens that the scorer of 'reward' writes per answer", "one pass of a reward model"),
        "similarity_s": assumed(
            "seconds in which 'mbr' compares all answers with one another", "a few dozen comparisons on a CPU"
        ),
        "instruction_tok": instruction_note,
    },
    assumptions=(
        "the greedy answer is as long as the others",
        "a judge's prompt begins with the problem and the greedy answer; answers are read whole, thoughts included",
        "every answer is equally likely to win",
    ),
    aliases=("hedged_sampling", "chops"),
    roles={
        "judge": "reads all answers in one call and picks one (selector chops)",
        "reward": "scores one answer per call (selector reward)",
    },
)
def hedged(
    run,
    samples: int = 5,
    selector: str = "chops",
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
    verdict_tok: Lengths = "128",
    score_tok: int = 1,
    similarity_s: Seconds = "0.05",
    instruction_tok: int = 64,
):
    """Hedged sampling (When Life Gives You Samples, arXiv:2506.20544): one greedy answer and `samples` - 1 stochastic
    ones are written in parallel. One of them is selected: by a single judge call that reads all of them (CHOPS), by a
    reward model that scores each, or by minimum Bayes risk, the one most similar to the others.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    greedy = run.generate(run.problem, "greedy", length)
    answers = yield run.all([greedy, *run.samples(samples - 1, run.problem, "sample", length)])
    if selector == "mbr":
        yield run.wait(similarity_s, "similarity")
        return run.pick(answers)
    if selector == "chops":
        checklist = run.instruction("checklist", instruction_tok)
        run.accept(run.pick(answers))
        return (yield run.generate(run.problem + run.text(answers) + checklist, "judge", verdict_tok, role="judge"))
    scores = yield run.all(
        run.generate(run.problem + run.text(answer), "score", score_tok, role="reward") for answer in answers
    )
    return run.pick(scores)
