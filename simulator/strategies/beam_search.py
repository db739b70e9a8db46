"""Beam search guided by a process reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.errors import UserError
from simulator.schedule.text import Text
from simulator.strategies.registry import Note, Share, assumed, published, strategy
from simulator.workload.lengths import Lengths

# Shared with lookahead search, of which this is the case without rollouts.
beam_notes: dict[str, Note] = {
    "samples": assumed("candidates N that are written per round", "the paper's budgets are 4, 16, 64 and 256"),
    "width": published("next steps M that are written from each of the N / M beams kept", "section 5.3: M = 4"),
    "depth": published("rounds at most", "section 5.2: 40 rounds of beam expansion"),
    "step_tok": assumed("tokens of one step of a solution", "a line or two of working; unpublished"),
    "end_rate": assumed("share of steps that end a solution", "ten steps in the mean; unpublished"),
    "score_tok": assumed("tokens that the reward model writes per score", "one pass of a model with a scalar head"),
}
beam_assumptions = (
    "a candidate's score is its parent's plus a standard normal draw",
    "a kept candidate whose solution has ended is an answer, and its place stays empty: the others go on, so that the "
    "search writes as much as `samples` solutions in the mean (published: this is how the paper counts its cost)",
    "candidates that are not kept hold no KV cache; the steps of a kept beam are read again as cache hits",
)
beam_roles = {"reward": "process reward model: reads the problem and the steps so far, and scores the last step"}


@strategy(
    title="beam search with a process reward model",
    source="arXiv:2408.03314",
    parameters=beam_notes,
    assumptions=beam_assumptions,
    aliases=("prm_beam_search",),
    roles=beam_roles,
)
def beam_search(
    run,
    samples: int = 16,
    width: int = 4,
    depth: int = 40,
    step_tok: Lengths = "lognormal:48:0.6",
    end_rate: Share = 0.1,
    score_tok: int = 1,
):
    """Beam search (arXiv:2408.03314): `samples` first steps of a solution are written in parallel and scored by a
    process reward model; the best N / M are kept, `width` next steps M are written from each, and so on, until the
    solutions end or `depth` rounds are over. The best score is the answer.
    """
    return (yield from search(run, samples, width, depth, step_tok, end_rate, score_tok, rollout_steps=0))


@dataclass(frozen=True)
class Beam:
    """A solution so far."""

    text: Text
    score: float
    ended: bool
    verdicts: tuple[Any, ...] = ()  # the calls that scored it, step by step


def search(
    run, samples: int, width: int, depth: int, step_tok: Lengths, end_rate: float, score_tok: int, rollout_steps: int
):
    """Rounds of: write steps, roll out (lookahead), score, keep. Returns the score call of the best beam."""
    if samples % width:
        raise UserError(
            f"strategies 'beam_search' and 'lookahead', parameter 'width': found {width}, expected a divisor of "
            f"samples = {samples}, because samples / width beams are kept"
        )
    places = samples // width
    answers, beams, children = [], [Beam(run.empty(), 0.0, False)], samples  # the first round grows nothing yet
    for _ in range(depth):
        steps = yield run.all(
            step for beam in beams for step in run.samples(children, run.problem + beam.text, "step", step_tok)
        )
        parents = [beam for beam in beams for _ in range(children)]
        texts = [parent.text + run.text(step) for parent, step in zip(parents, steps)]
        ended = [run.chance(end_rate) for _ in steps]
        ahead = yield from _roll_out(run, texts, ended, step_tok, end_rate, rollout_steps)
        verdicts = yield run.all(
            run.generate(run.problem + text + further, "score", score_tok, role="reward")
            for text, further in zip(texts, ahead)
        )
        grown = [
            Beam(text, parent.score + run.rng.normal(), over, (*parent.verdicts, verdict))
            for parent, text, over, verdict in zip(parents, texts, ended, verdicts)
        ]
        kept = sorted(grown, key=lambda beam: -beam.score)[: places - len(answers)]
        answers += [beam for beam in kept if beam.ended]
        beams, children = [beam for beam in kept if not beam.ended], width
        if not beams:
            break
    best = max(answers + beams, key=lambda beam: beam.score)
    return [run.accept(verdict) for verdict in best.verdicts][-1]


def _roll_out(run, texts: list[Text], ended: list[bool], step_tok: Lengths, end_rate: float, most_steps: int):
    """What the model writes behind each text, up to `most_steps` steps further; nothing behind one that has ended."""
    if not most_steps:
        return [run.empty()] * len(texts)
    calls = [
        None if done else run.generate(run.problem + text, "rollout", _steps_tok(run, step_tok, end_rate, most_steps))
        for text, done in zip(texts, ended)
    ]
    yield run.all(call for call in calls if call is not None)
    return [run.empty() if call is None else run.text(call) for call in calls]


def _steps_tok(run, step_tok: Lengths, end_rate: float, most_steps: int) -> int:
    """Tokens of `most_steps` steps, or of fewer where the solution ends before."""
    tokens = step_tok.draw(run.rng)
    for _ in range(most_steps - 1):
        if run.chance(end_rate):
            break
        tokens += step_tok.draw(run.rng)
    return tokens
