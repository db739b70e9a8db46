"""Breaks that are understood: which laws, on which GPUs, and why. They are broken all the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A cause that breaks `laws` on GPUs whose id begins with one of `gpus`."""

    laws: tuple[str, ...]
    gpus: tuple[str, ...]
    why: str


KNOWN = (
    Known(
        ("2.3", "4.1", "4.3"),
        ("orin-",),
        "On Jetson Orin, 16-bit products of up to 32 rows are priced on the vector units, one pass per row "
        "(`skinny_rows` of the calibration), larger ones on the matrix units, which are faster from far fewer rows on. "
        "Up to 32 sequences of a 1.5 B model that was measured (EdgeReasoning: 68 ms a step, where a prompt of 86 "
        "tokens takes 48 ms): the library does not choose the faster kernel. For larger models, measured up to 4 "
        "sequences, it is drawn out, and a step of 33 rows takes less than one of 32.",
    ),
)


def why_broken(law: str, gpu: str) -> str:
    """The known cause of a break; empty if there is none."""
    return next((known.why for known in KNOWN if law in known.laws and gpu.startswith(known.gpus)), "")
