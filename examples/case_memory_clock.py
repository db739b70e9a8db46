"""A memory clocked by the processor, and what tells it from a slow one.

A public repository corrects the coupling of a processor simulator and a memory simulator in stages, and keeps the
curves of each (github.com/bsc-mem/ZSim-mem-Interface, commit d19da32; arXiv 2604.16965). At first the memory ticked at
the processor's clock: more bandwidth than six channels of DDR4-2666 have. Then the clock was divided by 1.575 rounded
up to 2: every figure was possible again, and the bandwidth a fifth too low. Then the clock was right, and the latency
was still an estimate made before the memory is asked. Bounds see the first of these only. Two views of one quantity see
all three: bandwidth at the interface against the memory's own count, latency of the application against that inside the
memory.

The checks are the functions by which `validate` compares views and bounds of LLM inference. What such faults mean for
the studies that used the coupling is disputed between two groups (arXiv 2510.15744): what is printed is a class and its
evidence. Figures: examples/data/mess_stages.csv, recomputed from the published curves; the peak is 128 GB/s.
"""

import csv
import math

from case_studies import DATA, Story

from validate.checks.ceiling import two_sided
from validate.factors import constant_ratio
from validate.views import nested

CLOCKS = {"processor for memory clock": 2.1 / (4.0 / 3.0)}  # GHz
WORDS = {"bad": "mismatch", "passes": "consistent", "cannot verify": "unverifiable"}


def numbers(row: dict[str, str], *names: str) -> list[float] | None:
    """Cells of a row; None where one is empty: that view is missing."""
    return [float(row[name]) for name in names] if all(row[name] for name in names) else None


def study() -> Story:
    """Three checks on nine stages, against the label of each."""
    story = Story(__doc__)
    story.say(f"{'stage':26} of peak    {'two bandwidths':19}   {'two latencies':19}   {'verdict':21}   label")
    named: list[str] = []
    for row in csv.DictReader((DATA / "mess_stages.csv").open(encoding="utf-8")):
        [peak], [most] = numbers(row, "peak_gb_per_s"), numbers(row, "max_gb_per_s")
        bound = two_sided(most, ceiling=peak, peak=peak)
        # Of all points the least, the median and the largest ratio to the memory's own count.
        views = numbers(row, "ratio_least", "ratio_median", "ratio_most")
        ratio = constant_ratio(views, views and [1.0, 1.0, 1.0], clocks=CLOCKS)
        order = nested(numbers(row, "outer_ns"), numbers(row, "inner_ns"))

        alarms = {"F3": bound == "above_peak", "F2": ratio.verdict == "constant", "F6": order.verdict == "violated"}
        # Where no scale explains that a part is longer than the whole, the two are other statistics.
        alarms["F5"] = alarms["F6"] and ratio.verdict == "equal"
        classes = sorted(fault for fault, found in alarms.items() if found)
        missing = "unverifiable" in (ratio.verdict, order.verdict)
        verdict = "mismatch" if classes else "unverifiable" if missing else "consistent"

        story.say(
            f"{row['stage']:17} {bound:>10} {most / peak:5.0%}    {shown(ratio.ratio)} {ratio.verdict:13}   "
            f"{shown(order.worst)} {order.verdict:13}   {verdict:12} {' '.join(classes):8}   {row['label']}"
        )
        if classes:
            named += [f"  {row['stage']}: {ratio.name or 'no factor, the scales agree'}", f"    {row['diagnosis']}"]
        agrees = verdict == WORDS[row["label"]] and classes == list(filter(None, row["classes"].split(";")))
        story.figures[row["stage"]] = {"verdict": verdict, "classes": classes, "factor": ratio.name, "agrees": agrees}
    right = sum(stage["agrees"] for stage in story.figures.values())
    story.say(
        "", f"{right} of {len(story.figures)} stages come out as labelled; what the ratio is near, and the cause:"
    )
    story.say(*named)
    return story


def shown(number: float) -> str:
    """Five characters; a dash for what is not known."""
    return "    -" if math.isnan(number) else f"{number:5.3f}"


if __name__ == "__main__":
    study().tell()
