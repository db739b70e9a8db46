"""An evolutionary coding agent: programs, their runs, and the next generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.errors import UserError
from simulator.schedule.text import Text
from simulator.strategies.common import instruction_note
from simulator.strategies.registry import Share, assumed, strategy
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds


@strategy(
    title="evolutionary coding agent (ParEVO)",
    source="arXiv:2603.02510",
    parameters={
        "generations": assumed(
            "generations, one after the other",
            "the paper does not say; with 5 programs each as many programs as the 30 iterations of its scripts",
        ),
        "population": assumed("programs per generation, side by side", "unpublished; see generations"),
        "parents": assumed("best programs of a generation that the next one starts from", "unpublished"),
        "program_tok": assumed("tokens of a program with its comments", "a kernel of about a hundred lines"),
        "max_tok": assumed("where a program is cut", "four times the mean program"),
        "feedback_tok": assumed("tokens of what a run reports: errors, races, times", "a page of tool output"),
        "instruction_tok": instruction_note,
        "compile_s": assumed("seconds to compile a program", "a C++ file with templates"),
        "check_s": assumed("seconds of the tests under the race detector", "small inputs, tenfold slowdown"),
        "profile_s": assumed("seconds of the timed runs", "a few inputs and thread counts"),
        "compile_rate": assumed("share of programs that compile", "unpublished"),
        "clean_rate": assumed("share of those that pass the tests without a race", "unpublished"),
    },
    assumptions=(
        "a program that does not compile or is not clean has fitness 0 and no further runs; the others "
        "have a fitness that is uniform and independent of their parents'",
        "children are spread evenly over the parents; each reads one parent and the report of its runs",
        "the runs of a generation do not slow one another down",
        "the answer is the best program of all generations",
    ),
    aliases=("parevo", "evolutionary"),
)
def evolve(
    run,
    generations: int = 6,
    population: int = 5,
    parents: int = 2,
    program_tok: Lengths = "lognormal:1024:0.4",
    max_tok: int = 4096,
    feedback_tok: Lengths = "lognormal:512:0.5",
    instruction_tok: int = 64,
    compile_s: Seconds = "lognormal:10:0.3",
    check_s: Seconds = "lognormal:20:0.5",
    profile_s: Seconds = "lognormal:20:0.5",
    compile_rate: Share = 0.8,
    clean_rate: Share = 0.7,
):
    """An evolutionary coding agent (ParEVO, arXiv:2603.02510): the programs of a generation are written in parallel;
    each is compiled, tested under a race detector and timed, which takes no time on the GPU. The best are the parents
    of the next generation, whose prompts hold a parent and the report of its runs. A generation waits for the slowest
    run of the one before it.
    """
    if parents > population:
        raise UserError(
            f"strategy 'evolve', parameter 'parents': found {parents}, expected at most population = {population}"
        )
    brief = run.problem + run.instruction("evolve", instruction_tok)
    stages = (
        ("compile", compile_s, compile_rate),
        ("race detector", check_s, clean_rate),
        ("profiler", profile_s, 1.0),
    )
    best, seeds = None, [run.empty()]
    for generation in range(generations):
        fates = [_fate(run, stages, feedback_tok) for _ in range(population)]
        programs = yield run.branches(
            [
                _member(run, brief + seeds[i % len(seeds)], program_tok, max_tok, fate, f"report {generation}.{i}")
                for i, fate in enumerate(fates)
            ]
        )
        ranked = sorted(programs, key=lambda program: -program.fitness)
        best = max(best or ranked[0], ranked[0], key=lambda program: program.fitness)
        seeds = [program.text for program in ranked[:parents]]
    return best.call


@dataclass(frozen=True)
class Program:
    """A program that has been run. `text`: what the next generation reads of it, program and report."""

    call: Any
    text: Text
    fitness: float


@dataclass(frozen=True)
class Fate:
    """What becomes of a program, drawn before it is written: the draws then do not depend on which one is faster."""

    runs: list[tuple[str, float]]  # label and seconds
    fitness: float
    feedback_tok: int


def _fate(run, stages: tuple, feedback_tok: Lengths) -> Fate:
    runs, fitness = [], 0.0
    for label, seconds, pass_rate in stages:
        runs.append((label, seconds.draw(run.rng)))
        if not run.chance(pass_rate):
            break
    else:
        fitness = 1.0 - run.rng.random()  # above 0, at most 1
    return Fate(runs, fitness, feedback_tok.draw(run.rng))


def _member(run, prompt: Text, program_tok: Lengths, max_tok: int, fate: Fate, report: str):
    call = yield run.generate(prompt, "program", program_tok, max_tok)
    for label, seconds in fate.runs:
        yield run.wait(seconds, label)
    return Program(call, run.text(call) + run.instruction(report, fate.feedback_tok), fate.fitness)
