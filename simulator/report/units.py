"""Numbers as people read them. The only place where seconds become milliseconds and bytes become GB."""

from __future__ import annotations

import math

NOT_STATED = "not stated"


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits; '-' when it is not a number.

    In scientific notation only where a row of zeros would have to be counted: below 1e-6, from 1e12 on.
    """
    if not math.isfinite(value):
        return "-"
    if value == 0.0:
        return "0"
    if not 1e-6 <= abs(value) < 1e12:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    # 9.996 rounds up to 10.00: one digit too many, so look again after rounding.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(round(value, decimals)) or 1.0)))
    return f"{value:,.{decimals}f}"


def seconds(value: float, like: float | None = None) -> str:
    """Time [s] as ms below one second, s below ten minutes, then min, h; `like`: in the unit that fits that value."""
    if not math.isfinite(value):
        return "-"
    size = abs(value if like is None else like)
    for limit, scale, unit in ((1.0, 1e3, "ms"), (600.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if size < limit:
            return f"{significant(value * scale)} {unit}"
    return f"{significant(value / 3600)} h"


def span(low: float, high: float, unit) -> str:
    """'low - high' with the formatter `unit`: both ends in the unit of the larger, written once."""
    return together((low, high), unit, " - ")


def together(values, unit, separator: str = " / ") -> str:
    """Ascending `values` with the formatter `unit`: all in the unit of the last, written once."""
    scales = unit in (seconds, milliseconds, joules) and math.isfinite(values[-1])
    texts = [unit(value, values[-1]) if scales else unit(value) for value in values]
    end = texts[-1].split()[-1]
    if all(" " in text and text.split()[-1] == end for text in texts):
        texts = [*(text.rsplit(" ", 1)[0] for text in texts[:-1]), texts[-1]]
    return separator.join(texts)


def milliseconds(value: float, like: float | None = None) -> str:
    """Time [s] in ms, as TPOT is compared, unless it (or `like`) is 10 s or more."""
    if not math.isfinite(value):
        return "-"
    size = abs(value if like is None else like)
    return seconds(value, like) if size >= 10.0 else f"{significant(value * 1e3)} ms"


def gigabytes(value: float) -> str:
    """Size [byte] in GB (10^9)."""
    return "-" if not math.isfinite(value) else f"{significant(value / 1e9)} GB"


def tokens(value: float) -> str:
    """A token count with thousands separators."""
    return "-" if not math.isfinite(value) else f"{value:,.0f} tok"


def joules(value: float, like: float | None = None) -> str:
    """Energy [J] as J, kJ or MJ; `like`: in the unit that fits this value."""
    if not math.isfinite(value):
        return "-"
    size = abs(value if like is None else like)
    for limit, scale, unit in ((1e3, 1.0, "J"), (1e6, 1e-3, "kJ")):
        if size < limit:
            return f"{significant(value * scale)} {unit}"
    return f"{significant(value * 1e-6)} MJ"


def watt_hours(value: float) -> str:
    """Energy [J] in Wh or kWh."""
    hours = value / 3600.0
    return f"{significant(hours / 1e3)} kWh" if abs(hours) >= 1e3 else f"{significant(hours)} Wh"


def watts(value: float) -> str:
    """Power [W]."""
    return "-" if not math.isfinite(value) else f"{significant(value)} W"


def dollars(value: float) -> str:
    """Money [USD] with three significant digits, 'not stated' when there is no price."""
    return NOT_STATED if not math.isfinite(value) else f"${significant(value)}"


def percent(fraction: float) -> str:
    """A fraction as percent with one decimal."""
    return f"{100.0 * fraction:.1f} %"


def parameters(value: float) -> str:
    """A parameter count in billions or millions."""
    return f"{significant(value / 1e9)} B" if value >= 0.9995e9 else f"{significant(value / 1e6)} M"
