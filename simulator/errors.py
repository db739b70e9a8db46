"""Errors that a user can cause: one sentence, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave us; the message is one sentence: what, where, what was expected."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "", of: str = "") -> UserError:
    """A `UserError` for a name that is not known, with the nearest known names.

    `kind` is the noun a user would use ("GPU", "model", "strategy"); `hint` says where the full list is; `of`: whose
    name it is.
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    needle = name.lower()
    near = [lowered[c] for c in difflib.get_close_matches(needle, lowered, n=3, cutoff=0.5)]
    near += [c for low, c in lowered.items() if needle and needle in low and c not in near][: 3 - len(near)]
    guess = f"; nearest: {', '.join(near)}" if near else ""
    whose = f" of {of}" if of else ""
    return UserError(f"unknown {kind} '{name}'{whose}{guess}{'; ' + hint if hint else ''}")
