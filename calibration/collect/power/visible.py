"""Which physical GPU a program means by its GPU number.

CUDA and HIP renumber GPUs by environment variables that the drivers' libraries do not read. Without this translation
the power of a neighbour would be recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from calibration.collect.power.nothing import Unavailable
from simulator.errors import UserError

CUDA = ("CUDA_VISIBLE_DEVICES",)
HIP = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # the first that is set holds


def physical(
    devices: Sequence[int | str], variables: Sequence[str], environ: Mapping[str, str]
) -> list[tuple[str, int | str]]:
    """(Label, driver's index or UUID) of each device that a program calls by number; a UUID stays itself.

    UserError for a number that the variable hides; Unavailable where it hides all, as for a run on the CPU.
    """
    name = next((variable for variable in variables if variable in environ), None)
    found: list[tuple[str, int | str]] = []
    for device in devices:
        if isinstance(device, str) or name is None:
            found.append((f"gpu{device}", device))
            continue
        entries = _entries(environ[name])
        shown = f"{name}='{environ[name]}'"
        if not entries:
            raise Unavailable(f"{shown} shows no GPU")
        if not 0 <= device < len(entries):
            raise UserError(f"GPU {device} is not visible: {shown} shows {len(entries)}; expected a number below that")
        entry = entries[device]
        found.append((f"gpu{device}", int(entry) if entry.isdecimal() else entry))
    return found


def _entries(value: str) -> list[str]:
    """The GPUs that a variable shows: the runtimes end the list at the first entry that names none, such as -1."""
    named = (entry.strip() for entry in value.split(","))
    return list(takewhile(lambda entry: entry and not entry.startswith("-"), named))
