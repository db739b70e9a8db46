"""DeepPrune: many traces, of which those that a judge finds alike are stopped early."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from simulator.schedule.text import Text
from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="self-consistency with pruned traces (DeepPrune)",
    source="arXiv:2510.08483",
    parameters={
        "traces": published("traces that are started", "512, as the consensus baseline"),
        "trace_tok": assumed(
            "tokens of a trace that runs to its end",
            "derived: mean of 12,565, as Qwen3-32B's consensus of 512 on AIME24 has 1.93e8 tokens for 30 problems; the "
            "spread is assumed",
        ),
        "trace_max_tok": assumed("limit of a trace, where it is cut", "32,768 tokens, as Qwen3 is run"),
        "cut_tok": published("tokens of a trace that the judge reads", "the first 500 tokens"),
        "at_cut": assumed(
            "what traces do while the judge works: 'wait' at the cut, or 'run on'",
            "the token totals count 500 tokens for a pruned trace",
            choices=("wait", "run on"),
        ),
        "tau": published("a trace joins the cluster with the highest score if it is above tau", "0.5", 0.01, 0.99),
        "compared": assumed("members p of each cluster that a trace is compared with", "unpublished; the least"),
        "clusters": assumed(
            "limit K of clusters; beyond it a trace joins the likeliest one", "unpublished; rarely met"
        ),
        "finishing": assumed(
            "limit K2 of traces of the largest cluster that finish",
            "unpublished; what the total of one cell says, Qwen3-32B on AIME24: 2.6e7 tokens",
        ),
        "fallback": assumed("limit K3 of random traces that finish if no two are alike", "unpublished; as K2"),
        "same_answer": published(
            "probability that two traces have the same answer", "mean of four models: 81.6 %, preliminary study", 0.01
        ),
        "auroc": published("how well the judge tells equal answers from others", "0.7072, version 2", 0.5, 0.999),
        "instruction_tok": assumed("tokens of the judge's instruction", "a short paragraph; unpublished"),
    },
    assumptions=(
        "answers of traces are drawn by a Chinese restaurant process with the stated probability that two are the same",
        "the judge's scores are probabilities: normal in log-odds, with two means apart as the stated AUROC says",
        "a judge reads the new trace before the member, so the comparisons of one trace share its prefill",
        "the largest cluster's first members finish; the majority vote takes no time",
    ),
    aliases=("deep_prune",),
    roles={"judge": "reads the beginnings of two traces and says whether they will end in the same answer"},
)
def deepprune(
    run,
    traces: int = 512,
    trace_tok: Lengths = "lognormal:12565:0.5",
    trace_max_tok: int = 32768,
    cut_tok: int = 500,
    at_cut: str = "wait",
    tau: float = 0.5,
    compared: int = 1,
    clusters: int = 16,
    finishing: int = 50,
    fallback: int = 50,
    same_answer: Share = 0.816,
    auroc: float = 0.7072,
    instruction_tok: int = 64,
):
    """DeepPrune (arXiv:2510.08483): many traces fork from the problem, whose KV cache they share. Once each has
    written its first 500 tokens, a small judge model compares one trace after the other with members of the clusters
    found so far: all comparisons of one trace are short calls that only prefill, made at the same time. A trace joins
    the most similar cluster or opens one. Of the largest cluster at most K2 traces run to their end and vote; all
    others stop. If no two traces are alike, K3 random ones finish.
    """
    lengths = trace_tok.at_most(trace_max_tok).sample(run.rng, traces).tolist()
    if at_cut == "wait":
        started = yield run.all([run.generate(run.problem, "trace", min(n, cut_tok)) for n in lengths])
        beginnings = [run.text(trace) for trace in started]
    else:
        started = run.start([run.generate(run.problem, "trace", n) for n in lengths])
        yield run.written(started, cut_tok)
        beginnings = [run.instruction(f"beginning of trace {i}", min(n, cut_tok)) for i, n in enumerate(lengths)]
    judge = Judge(answers(run.rng, traces, same_answer), auroc, tau, run.instruction("judge", instruction_tok))
    found = yield from clustered(run, beginnings, judge, compared, clusters)
    chosen = survivors(run.rng, found, finishing, fallback)
    if at_cut == "run on":
        run.stop([trace for i, trace in enumerate(started) if i not in chosen])
        started = yield run.all(started)
        return [started[i] for i in chosen]
    rest = [i for i in chosen if lengths[i] > cut_tok]
    ends = yield run.all([run.generate(run.problem + beginnings[i], "finish", lengths[i] - cut_tok) for i in rest])
    return ends + [started[i] for i in chosen if i not in rest]


@dataclass(frozen=True)
class Judge:
    """Verdicts drawn for pairs of traces, given their answers (one number per trace)."""

    answers: list[int]
    auroc: float
    tau: float
    instruction: Text

    def scores(self, rng: np.random.Generator, pairs: list[tuple[int, int]]) -> np.ndarray:
        """Scores (pairs,) in units of their standard deviation; those above `threshold` say 'the same answer'.

        Normal with means +-d/2 for the same and for different answers: AUROC = Phi(d / sqrt 2).
        """
        same = np.array([self.answers[a] == self.answers[b] for a, b in pairs])
        return np.where(same, 0.5, -0.5) * self.apart + rng.standard_normal(len(pairs))

    @property
    def apart(self) -> float:
        """Distance d of the two means."""
        return math.sqrt(2.0) * NormalDist().inv_cdf(self.auroc)

    @property
    def threshold(self) -> float:
        """tau as a score: log-odds are d times the score."""
        return math.log(self.tau / (1.0 - self.tau)) / max(self.apart, 1e-9)


def answers(rng: np.random.Generator, traces: int, same_answer: float) -> list[int]:
    """Which answer each trace ends in: a Chinese restaurant process in which two have the same with `same_answer`."""
    found: list[int] = []
    concentration = 1.0 / same_answer - 1.0
    for number in range(traces):
        new = number == 0 or rng.random() * (number + concentration) < concentration
        found.append(number if new else found[int(rng.integers(number))])
    return found


def clustered(run, beginnings: list[Text], judge: Judge, compared: int, limit: int) -> Generator:
    """Greedy clustering, one trace after the other; returns lists of trace numbers."""
    clusters = [[0]]
    for trace in range(1, len(beginnings)):
        asked = [sampled(run.rng, members, compared) for members in clusters]
        pairs = [(trace, member) for members in asked for member in members]
        prompts = [judge.instruction + beginnings[trace] + beginnings[member] for _, member in pairs]
        yield run.all([run.generate(prompt, "judge", 1, role="judge") for prompt in prompts])
        scores = np.split(judge.scores(run.rng, pairs), np.cumsum([len(members) for members in asked])[:-1])
        means = [float(part.mean()) for part in scores]
        best = int(np.argmax(means))
        if means[best] > judge.threshold or len(clusters) == limit:
            clusters[best].append(trace)
        else:
            clusters.append([trace])
    return clusters


def sampled(rng: np.random.Generator, members: list[int], most: int) -> list[int]:
    """Up to `most` of the members."""
    return members if len(members) <= most else [members[i] for i in rng.choice(len(members), most, replace=False)]


def survivors(rng: np.random.Generator, clusters: list[list[int]], finishing: int, fallback: int) -> list[int]:
    """Which traces run to their end."""
    largest = max(clusters, key=len)
    if len(largest) > 1:
        return largest[:finishing]
    return sorted(rng.permutation(len(clusters))[:fallback].tolist())
