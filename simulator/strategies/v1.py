"""V1-Infer: pairwise self-verification in a tournament."""

from __future__ import annotations

import numpy as np

from simulator.errors import UserError
from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths

LOWEST, HIGHEST = 1, 10  # ratings that a judge may give


@strategy(
    title="pairwise self-verification (V1-Infer)",
    source="arXiv:2603.04304",
    parameters={
        "samples": published("solutions N", "section 4.1, where N is 8 or 16", least=2),
        "budget_multiplier": published(
            "judge calls per solution: the budget B is this times N", "section 4.1, where it is 1, 2 or 3", most=64
        ),
        "min_degree": published("opponents that every solution meets in the first phase", "appendix C"),
        "window": published("ranks down to which a Swiss round looks for an opponent", "appendix C"),
        "weight_floor": published("least weight of a comparison, where |difference| / 9 is less", "appendix C"),
        **solving_notes,
        "verdict_tok": assumed(
            "tokens that a judge writes: its reasoning, then two ratings from 1 to 10",
            "the published prompt asks for reasoning first; its length is unpublished",
        ),
        "judge_noise": assumed(
            "spread of one rating around the quality of a solution; qualities have spread 1",
            "then a judge is right about four of five random pairs; unpublished",
            most=100,
        ),
        "instruction_tok": assumed(
            "tokens of a judge's instructions", "the published templates have about 200 words around the problem"
        ),
    },
    assumptions=(
        "a rating is 5.5 + 2 x (quality + noise), rounded and cut to 1 to 10; qualities and noise are normal",
        "a judge reads its instructions, the problem and two whole solutions, thoughts included; two judges share the "
        "KV cache of the first solution, none shares that of the generation (the published template starts so)",
        "a round of the first phase waits for the one before, because it pairs by scores (published, appendix D)",
    ),
    aliases=("v1_infer", "pairwise"),
    roles={"judge": "compares two solutions; in the paper it is the model that wrote them"},
)
def v1(
    run,
    samples: int = 16,
    budget_multiplier: float = 3.0,
    min_degree: int = 2,
    window: int = 8,
    weight_floor: Share = 0.1,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
    verdict_tok: Lengths = "lognormal:1024:0.5",
    judge_noise: float = 0.7,
    instruction_tok: int = 300,
):
    """V1-Infer (arXiv:2603.04304): `samples` solutions are written in parallel, then B = `budget_multiplier` x N
    judge calls rate two of them each. First every solution meets `min_degree` opponents, the nearest in score; then
    Swiss rounds rank by weighted win rate and pair near neighbours, unseen pairs first. The calls of a round run in
    parallel, the rounds one after the other, and the solution with the best win rate is the answer.
    """
    if min_degree >= samples:
        raise UserError(
            f"strategy 'v1', parameter 'min_degree': found {min_degree}, expected less than samples = {samples}"
        )
    length = attempt(thinking_tok, answer_tok, budget_tok)
    solutions = yield run.all(run.samples(samples, run.problem, "solution", length))
    quality = run.rng.normal(size=samples)
    table = Tournament(samples, min_degree, window, weight_floor)
    question = run.instruction("judge", instruction_tok) + run.problem
    verdicts, left = solutions, round(budget_multiplier * samples)
    while pairs := table.next_round(run.rng)[:left]:
        verdicts = yield run.all(
            run.generate(question + run.text([solutions[a], solutions[b]]), "judge", verdict_tok, role="judge")
            for a, b in pairs
        )
        for a, b in pairs:
            table.record(a, b, *rate(quality[[a, b]], judge_noise, run.rng))
        left -= len(pairs)
    run.accept(solutions[table.ranking()[0]])
    return verdicts


def rate(quality: np.ndarray, noise: float, rng: np.random.Generator) -> list[int]:
    """A judge's ratings of solutions of these qualities."""
    seen = 5.5 + 2.0 * (quality + noise * rng.normal(size=len(quality)))
    return np.clip(np.rint(seen), LOWEST, HIGHEST).astype(int).tolist()


class Tournament:
    """Who meets whom, and the score of each solution: its win rate, weighted by how clear the wins were."""

    def __init__(self, samples: int, min_degree: int, window: int, weight_floor: float) -> None:
        self.min_degree, self.window, self.weight_floor = min_degree, window, weight_floor
        self.opponents: list[set[int]] = [set() for _ in range(samples)]
        self._won = np.zeros(samples)  # sum of weight x outcome (1 win, 0.5 tie, 0 loss)
        self._weight = np.zeros(samples)

    @property
    def score(self) -> np.ndarray:
        """Weighted win rate of each solution, 0.5 for one that nobody has judged."""
        known = self._weight > 0
        return np.where(known, self._won / np.where(known, self._weight, 1.0), 0.5)

    def ranking(self) -> list[int]:
        """Solutions, best score first; of equal ones the earlier first."""
        return np.argsort(-self.score, kind="stable").tolist()

    def record(self, a: int, b: int, rating_a: int, rating_b: int) -> None:
        """One verdict on a pair."""
        weight = max(abs(rating_a - rating_b) / (HIGHEST - LOWEST), self.weight_floor)
        outcome = 0.5 + 0.5 * np.sign(rating_a - rating_b)
        self._won[a] += weight * outcome
        self._won[b] += weight * (1.0 - outcome)
        self._weight[[a, b]] += weight
        self.opponents[a].add(b)
        self.opponents[b].add(a)

    def next_round(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Disjoint pairs: for coverage as long as a solution has met too few, then a Swiss round."""
        few = [i for i, met in enumerate(self.opponents) if len(met) < self.min_degree]
        if few:
            return self._coverage(few, rng)
        return self._swiss() if len(self.opponents) > 2 else []

    def _coverage(self, few: list[int], rng: np.random.Generator) -> list[tuple[int, int]]:
        """Those with the fewest opponents choose first, by chance among equals: the nearest in score not yet met."""
        order = sorted(rng.permutation(few).tolist(), key=lambda i: len(self.opponents[i]))
        everyone = rng.permutation(len(self.opponents)).tolist()
        score, used, pairs = self.score, set(), []
        for a in order:
            free = [b for b in everyone if b != a and b not in used and b not in self.opponents[a]]
            if a not in used and free:
                b = min(free, key=lambda b: abs(score[a] - score[b]))
                pairs.append((a, b))
                used |= {a, b}
        return pairs

    def _swiss(self) -> list[tuple[int, int]]:
        """Down the ranking, each free solution takes the nearest in score within the window, unseen ones first."""
        ranking, score, used, pairs = self.ranking(), self.score, set(), []
        for place, a in enumerate(ranking):
            free = [b for b in ranking[place + 1 : place + 1 + self.window] if b not in used]
            if a not in used and free:
                b = min(free, key=lambda b: (abs(score[a] - score[b]), b in self.opponents[a]))
                pairs.append((a, b))
                used |= {a, b}
        return pairs
