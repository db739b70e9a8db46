"""Lookahead search: beam search that scores every step after a rollout."""

from __future__ import annotations

from simulator.strategies.beam_search import beam_assumptions, beam_notes, beam_roles, search
from simulator.strategies.registry import Share, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="lookahead search with a process reward model",
    source="arXiv:2408.03314",
    parameters={
        **beam_notes,
        "lookahead": published("steps k of a rollout; 0 is beam search", "section 5.3, where k is 1 or 3", least=0),
    },
    assumptions=(
        *beam_assumptions,
        "a rollout is greedy, ends where the solution ends, and is thrown away when its step has its score (published)",
        "a step that ends the solution has no rollout",
    ),
    aliases=("lookahead_search",),
    roles=beam_roles,
)
def lookahead(
    run,
    samples: int = 16,
    width: int = 4,
    depth: int = 40,
    step_tok: Lengths = "lognormal:48:0.6",
    end_rate: Share = 0.1,
    score_tok: int = 1,
    lookahead: int = 3,
):
    """Lookahead search (arXiv:2408.03314): beam search in which a candidate step is not scored as it stands. The model
    first writes up to `lookahead` steps further, the reward model reads step and rollout, and its score counts for the
    step. This costs N x (k + 1) samples where beam search costs N.
    """
    return (yield from search(run, samples, width, depth, step_tok, end_rate, score_tok, rollout_steps=lookahead))
