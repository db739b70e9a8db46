"""An explanation as plain text, to stand behind the report of the run that it explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.planning.explain.accounts import PHASES
from simulator.planning.explain.explanation import Explanation, Sensitivity, Split
from simulator.report import units
from simulator.report.plain import bar, columns

COLUMN_TITLES = {
    "wall_s_p50": "wall time p50", "e2e_s_mean": "end to end mean", "ttft_s_p50": "TTFT p50", "tpot_s_p50": "TPOT p50",
    "output_tok_per_s": "output rate", "energy_j_p50": "energy p50", "energy_j": "energy",
}  # fmt: skip
NOTHING = 1e-9  # of a total: rounding
BAR_WIDTH = 30


def render_explanation(explanation: Explanation) -> str:
    """All of it, ending in a newline."""
    ladder, causes = explanation.ladder, explanation.causes
    blocks = [
        ["Explanation", f"  {explanation.sentence}", *(f"  - {note}" for note in explanation.notes)],
        [f"{_begun(ladder.title)} ({units.seconds(ladder.total)})", *_indent(_summands(ladder))],
        [_title(causes), *_indent(_by_phase(causes))],
        *([_title(split), *_indent(_by_phase(split) if split.by_phase else _summands(split))]
          for split in explanation.further),
        [_title(explanation.energy), *_indent(_by_phase(explanation.energy))],
    ]  # fmt: skip
    if explanation.calls:
        blocks.append(["Calls (means)", *_indent(_calls(explanation))])
    blocks.append(["What would change it (the same seeds again, one thing changed)", *_indent(_changes(explanation))])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def unit_of(split: Split) -> Callable[[float], str]:
    """How its values are written; what is only rounding is nothing."""
    write = units.seconds if split.unit == "s" else units.joules
    return lambda value: write(value if abs(value) > NOTHING * abs(split.total) else 0.0)


def _title(split: Split) -> str:
    return f"{_begun(split.title)} ({unit_of(split)(split.total)})"


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _summands(split: Split) -> list[str]:
    """Name, value, share, bar of every part that is not nothing."""
    write, shares = unit_of(split), split.shares()
    rows = [
        (part.title or part.name, write(part.value), units.percent(shares[part.name]),
         bar(max(0.0, shares[part.name]), BAR_WIDTH))
        for part in split.parts
        if abs(part.value) > NOTHING * abs(split.total)
    ]  # fmt: skip
    return columns(rows, right=(1, 2))


def _by_phase(split: Split) -> list[str]:
    """Cause, in steps with prompts, in decode-only steps, together, share, bar."""
    write, shares = unit_of(split), split.shares()
    rows = [("", "steps with prompts", "decode only", "all", "", "")]
    for part in split.parts:
        if abs(part.value) <= NOTHING * abs(split.total):
            continue
        own = [split.by_phase[phase].get(part.name) for phase in PHASES]
        cells = ["" if value is None else write(value) for value in own]
        share = shares[part.name]
        title = part.title if split.unit == "J" or part.name in ("idle", "front end", "queue") else part.name
        rows.append((title, *cells, write(part.value), units.percent(share), bar(max(0.0, share), BAR_WIDTH)))
    return columns(rows, right=(1, 2, 3, 4))


def _calls(explanation: Explanation) -> list[str]:
    rows = [("call", "per run", "queue", "prefill", "decode")]
    for label, of in explanation.calls.items():
        spans = (units.seconds(of[f"{phase}_s"]) for phase in ("queue", "prefill", "decode"))
        rows.append((label, units.significant(of["calls"]), *spans))
    return columns(rows, right=range(1, 5))


def _changes(explanation: Explanation) -> list[str]:
    found = [each for each in explanation.sensitivities if not each.reason]
    rows = [("", *(COLUMN_TITLES[name] for name in explanation.figures))]
    rows += [(each.title, *(_change(each, name) for name in explanation.figures)) for each in found]
    failed = [f"{each.title}: not simulated, {each.reason}" for each in explanation.sensitivities if each.reason]
    return [*columns(rows, right=range(1, len(rows[0]))), *failed]


def _change(sensitivity: Sensitivity, name: str) -> str:
    """'-7.4 %', '0' for none at all."""
    change = sensitivity.changes[name]
    if change != change:
        return "-"
    return "0" if change == 0.0 else f"{100.0 * change:+.2f} %"
