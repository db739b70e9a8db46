"""Documented mismatches between simulators and measurements, each told by a script: the list, and what they share.

python examples/case_studies.py prints the list; with --markdown it runs every script and prints docs/case-studies.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.collect.to_records import csv_bytes
from calibration.records import RunRecord, read_records
from validate.cases import Case
from validate.finding import Finding, fault_classes
from validate.suite import Verdict, evidence_of, run_checks

HERE = Path(__file__).parent
DATA = HERE / "data"
RUNS = HERE.parent / "calibration" / "data" / "runs"
CASES = (
    "case_edgereasoning_prefill.py", "case_host_bound_b200.py", "case_kv_blocks.py", "case_two_tpots.py",
    "case_memory_clock.py",
)  # fmt: skip
WIDTH = 112
DOUBTS = ("suspect:", "ambiguous:")


def unmarked(record: RunRecord) -> dict[str, str]:
    """The flags of a run without what its source or its collector thinks of it: the suite is to find that itself."""
    return {"flags": ";".join(flag for flag in record.flag_list if not flag.startswith(DOUBTS))}


def judge(records: Sequence[RunRecord], name: str, simulated: Sequence[RunRecord] | None = None) -> Verdict:
    """The verdict of `validate NAME [--simulated FILE]`, by way of files, as a user's would be."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name, Path(folder) / "simulated.csv"]
        for path, rows in zip(paths, (records, simulated or ())):
            path.write_bytes(csv_bytes(rows))
        theirs = paths[1] if simulated else None
        return run_checks(evidence_of(read_records(paths[0]), name, simulated=theirs))


@dataclass
class Story:
    """What a case prints: sentences and tables, and verdicts of the suite. figures: numbers by name, for --json."""

    doc: str
    figures: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Add lines as they are."""
        self.lines += lines

    def verdict(self, of: str, verdict: Verdict, more: Iterable[Finding] = (), only: Sequence[str] = ()) -> None:
        """Add what the suite says. more: findings made beside it; only: checks told in full, the rest in a line."""
        findings = [*verdict.findings, *more]
        statuses = Counter(_status(verdict, case) for case in verdict.evidence.cases)
        self.verdicts.append({
            "of": of, "status": dict(statuses), "findings": [finding.to_dict() for finding in findings],
        })  # fmt: skip
        alarms = [finding for finding in findings if finding.alarm]
        runs = ", ".join(f"{count} {status}" for status, count in statuses.items())
        self.say("", f"{of}: {_count(len(alarms), 'finding') if alarms else 'nothing suspected'} (runs: {runs})")
        for finding in alarms:
            if not only or finding.check in only:
                self.say(*_told(finding))
        rest = Counter((finding.fault, finding.check) for finding in alarms if only and finding.check not in only)
        if rest:
            told = ", ".join(f"{fault} {check} ({n})" for (fault, check), n in rest.items())
            self.say(*_wrapped(f"beside them: {told}", "  "))

    def tell(self) -> None:
        """Print it all; with --json as one object."""
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        told = {"title": title_of(self.doc), "figures": self.figures, "verdicts": self.verdicts}
        print(json.dumps(told) if parser.parse_args().json else "\n".join((title_of(self.doc), "", *self.lines)))


def _status(verdict: Verdict, case: Case) -> str:
    """Of another simulator only whether a run is refused: "ok" and "extrapolated" speak of our calibration."""
    status = verdict.status(case)
    return status if verdict.evidence.own or status.startswith("refused") else "not refused"


def _told(finding: Finding) -> Iterable[str]:
    facts = (finding.severity, finding.confidence, finding.check, _count(len(finding.runs), "run"))
    yield f"  {finding.fault} {' · '.join((fault_classes()[finding.fault].name, *facts))}"
    for text in (finding.says, f"next: {finding.advice}"):
        yield from _wrapped(text, "    ")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def title_of(doc: str) -> str:
    """The first line of a script's docstring, without its full stop."""
    return doc.strip().splitlines()[0].rstrip(".")


def story_of(name: str) -> str:
    """The docstring of a script."""
    return ast.get_docstring(ast.parse((HERE / name).read_text(encoding="utf-8"))) or ""


def page() -> str:
    """All cases as Markdown: what each is about, and what it prints."""
    parts = [
        "# Case studies",
        "Documented mismatches between simulators and measurements, reproduced, and what the suite says of them. No\n"
        "finding says that a simulator is wrong: it names a class, the evidence, and what to look at next. Written by\n"
        "`python examples/case_studies.py --markdown`.",
        "\n".join(f"* [{title_of(story_of(name))}](#{_anchor(title_of(story_of(name)))})" for name in CASES),
    ]
    for name in CASES:
        title, _, story = story_of(name).partition("\n")
        done = subprocess.run([sys.executable, str(HERE / name)], capture_output=True, text=True, check=True)
        printed = done.stdout.partition("\n")[2].strip("\n")
        parts += [f"## {title.rstrip('.')}", story.strip(), f"```\n$ python examples/{name}\n{printed}\n```"]
    return "\n\n".join(parts)


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def main() -> None:
    """Print the list of cases, or the page."""
    parser = argparse.ArgumentParser(description="Documented mismatches, and what the suite says of them.")
    parser.add_argument("--markdown", action="store_true", help="run all cases and print the page")
    if parser.parse_args().markdown:
        print(page())
        return
    print("case studies, each a script that prints the suite's verdict (all of them on one page: --markdown)\n")
    for name in CASES:
        print(f"python examples/{name}\n    {title_of(story_of(name))}")


if __name__ == "__main__":
    main()
