"""QAlign: a Markov chain over whole answers, steered by a reward model."""

from __future__ import annotations

import math

import numpy as np

from simulator.strategies.registry import assumed, published, strategy
from simulator.workload.lengths import Lengths, parse_lengths

SETUP = "the general experiments of the authors' scripts"
TRIES = 100  # draws of a length beyond the kept prefix before the old length is kept


@strategy(
    title="sampling from the aligned distribution (QAlign)",
    source="arXiv:2504.03790",
    parameters={
        "steps": published("steps of a chain, each of them one rewrite and one score", SETUP),
        "chains": published("chains side by side on one question", SETUP),
        "beta": published("temperature of the reward: small values keep good answers", SETUP, least=1e-6, most=1e6),
        "answer_tok": assumed("tokens of an answer", "a worked solution of grade-school or competition mathematics"),
        "max_tok": published("where an answer is cut", SETUP),
        "score_tok": assumed("tokens that the reward model writes: one forward pass over the text", "a scalar head"),
    },
    assumptions=(
        "rewards are standard normal over answers; a rewrite that keeps the share k of the old text has a reward of "
        "k x the old one + sqrt(1 - k^2) x a new draw",
        "a rewrite is accepted with probability min(1, exp(difference of reward / beta) x old length / new length), "
        "which is the rule of the authors' library",
        "the cut is uniform over the old text; the new length is drawn from those that are longer than what is kept",
        "the reward model keeps KV cache between steps as the other model does",
    ),
    aliases=("quest", "mcmc"),
    roles={"reward": "scores the whole answer after every rewrite; in the paper an 8B model on a second GPU"},
)
def qalign(
    run,
    steps: int = 1024,
    chains: int = 1,
    beta: float = 0.5,
    answer_tok: Lengths = "lognormal:320:0.4",
    max_tok: int = 800,
    score_tok: int = 1,
):
    """QAlign (arXiv:2504.03790): a chain starts from one whole answer. Each step cuts the answer at a random token,
    keeps what is before, whose KV cache is a hit, and writes the rest anew; a reward model reads the whole text, and
    the rewrite is accepted or rejected by the Metropolis-Hastings rule. Every state of the chain is a sample, and the
    answer is voted from all of them.
    """
    length = parse_lengths(answer_tok).at_most(max_tok)
    return (yield run.branches([_chain(run, steps, beta, length, score_tok) for _ in range(chains)]))


def _chain(run, steps: int, beta: float, length: Lengths, score_tok: int):
    rng = run.rng
    text = run.text((yield run.generate(run.problem, "sample", length.draw(rng))))
    score = yield run.generate(run.problem + text, "score", score_tok, role="reward")
    reward = rng.normal()
    for _ in range(steps):
        kept_tok = int(rng.integers(text.tokens))
        kept = text.first(kept_tok)
        rest = yield run.generate(run.problem + kept, "rewrite", rest_tok(length, kept_tok, text.tokens, rng))
        proposal = kept + run.text(rest)
        score = yield run.generate(run.problem + proposal, "score", score_tok, role="reward")
        share = kept_tok / text.tokens
        proposed = share * reward + math.sqrt(1.0 - share**2) * rng.normal()
        if rng.random() < acceptance(proposed - reward, beta, text.tokens, proposal.tokens):
            text, reward = proposal, proposed
    return score


def rest_tok(length: Lengths, kept_tok: int, old_tok: int, rng: np.random.Generator) -> int:
    """Tokens behind the kept ones: a length beyond them less what they are; the old length if none is found soon."""
    longer = length.sample(rng, TRIES)
    longer = longer[longer > kept_tok]
    return int(longer[0] if len(longer) else old_tok) - kept_tok


def acceptance(gain: float, beta: float, old_tok: int, new_tok: int) -> float:
    """Metropolis-Hastings; the ratio of lengths is that of the chances to have cut there."""
    return math.exp(min(0.0, gain / beta + math.log(old_tok / new_tok)))
