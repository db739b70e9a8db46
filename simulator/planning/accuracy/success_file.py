"""CSV files that say how single samples did, by question.

question,p              the chance that a sample is correct
question,n,c            c of n drawn samples were correct
question,answer,correct,count
                        every answer of a question: whether it is correct (1 or 0), how often it was drawn
"""

from __future__ import annotations

import numpy as np

from simulator.errors import UserError
from simulator.planning.accuracy.success import Counted, Known, Success
from simulator.planning.accuracy.tables import Row, read_table

FORMATS = ("question,p", "question,n,c", "question,answer,correct,count")
MOST_SAMPLES_DRAWN = 1e7
WHAT = "success file"


def read_success(path: str) -> Success:
    """One of the three formats above, told apart by its columns. UserError when it is none of them."""
    columns, rows = read_table(path, WHAT)
    found = set(columns)
    if found == {"question", "answer", "correct", "count"}:
        return _of_answers(path, rows)
    if found not in ({"question", "p"}, {"question", "n", "c"}):
        raise UserError(f"{WHAT} '{path}' has the columns {', '.join(columns)}; expected {', or '.join(FORMATS)}")
    names = tuple(row.cells["question"] for row in rows)
    _check_once(path, names)
    if "p" in found:
        return Known(path, np.array([row.number("p", 0.0, 1.0) for row in rows]), names)
    n = [int(row.number("n", 1, MOST_SAMPLES_DRAWN, whole=True)) for row in rows]
    c = [int(row.number("c", 0, most, whole=True)) for row, most in zip(rows, n)]
    return Counted(path, np.array(n), np.array(c), names)


def _check_once(path: str, names: tuple[str, ...]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{WHAT} '{path}': question '{twice}' is there twice; expected one row per question")


def _of_answers(path: str, rows: list[Row]) -> Known:
    """Shares of every answer taken as chances; at most one answer of a question is correct."""
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        by_question.setdefault(row.cells["question"], []).append(row)
    success, wrong = [], []
    for name, own in by_question.items():
        counts = np.array([row.number("count", 0, MOST_SAMPLES_DRAWN, whole=True) for row in own])
        right = np.array([row.number("correct", 0, 1, whole=True) for row in own], dtype=bool)
        if right.sum() > 1:
            raise UserError(
                f"{WHAT} '{path}': question '{name}' has {right.sum()} correct answers; a vote needs them as one answer"
            )
        if counts.sum() == 0:
            raise UserError(f"{WHAT} '{path}': question '{name}' has no samples; expected counts above 0")
        others = counts[~right & (counts > 0)]
        success.append(counts[right].sum() / counts.sum())
        wrong.append(others / others.sum() if len(others) else np.ones(1))
    return Known(path, np.array(success), tuple(by_question), tuple(wrong))
