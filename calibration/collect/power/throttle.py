"""Why clocks are held down: the reasons in words, and what each means for a measured point."""

from __future__ import annotations

from collections.abc import Iterable

REJECTS, LABELS, HARMLESS = "rejects", "labels", "harmless"

# Bit of NVML's clocks event reasons -> words, effect. Bits: NVML header (nvmlClocksEventReasons).
# Heat and emergency brakes come and go with the room and the supply: such a point says nothing about the part. A power
# cap, a clock setting and sync boost are stable properties of the set-up: the point stands, under that label.
NVML_REASONS: dict[int, tuple[str, str]] = {
    0x001: ("idle", HARMLESS),
    0x002: ("application clocks", LABELS),
    0x004: ("software power cap", LABELS),
    0x008: ("hardware slowdown", REJECTS),
    0x010: ("sync boost", LABELS),
    0x020: ("software thermal slowdown", REJECTS),
    0x040: ("hardware thermal slowdown", REJECTS),
    0x080: ("hardware power brake", REJECTS),
    0x100: ("display clocks", LABELS),
    0x200: ("board limit", LABELS),
}

# Accumulated counters of amdsmi_get_violation_status (AMD MI300 and newer) -> words, effect.
AMD_REASONS: dict[str, tuple[str, str]] = {
    "acc_ppt_pwr": ("package power limit", LABELS),
    "acc_prochot_thrm": ("processor hot", REJECTS),
    "acc_socket_thrm": ("socket thermal limit", REJECTS),
    "acc_vr_thrm": ("voltage regulator thermal limit", REJECTS),
    "acc_hbm_thrm": ("memory thermal limit", REJECTS),
}

# Event counters of Jetson's over-current controller (oc1_event_cnt, ...) -> words, effect. The third reacts to peaks of
# microseconds and fires even in the vendor's fastest power modes, so it labels.
JETSON_REASONS: dict[str, tuple[str, str]] = {
    "oc1_event_cnt": ("under-voltage", REJECTS),
    "oc2_event_cnt": ("average over-current", REJECTS),
    "oc3_event_cnt": ("instantaneous over-current", LABELS),
}
JETSON_THERMAL = ("thermal throttling", REJECTS)

_EFFECTS = dict([*NVML_REASONS.values(), *AMD_REASONS.values(), *JETSON_REASONS.values(), JETSON_THERMAL])


def nvml_words(bits: int) -> tuple[str, ...]:
    """NVML's bit mask in words, lowest bit first; a bit that is not known here is named by its value."""
    set_bits = [1 << place for place in range(bits.bit_length()) if bits >> place & 1]
    return tuple(NVML_REASONS[bit][0] if bit in NVML_REASONS else f"unknown reason {bit:#x}" for bit in set_bits)


def rejecting(reasons: Iterable[str]) -> tuple[str, ...]:
    """The reasons for which a point must not be used for a fit."""
    return tuple(reason for reason in reasons if _EFFECTS.get(reason) == REJECTS)


def labelling(reasons: Iterable[str]) -> tuple[str, ...]:
    """The reasons with which a point may be used under a label; a reason that is not known is one of them."""
    return tuple(reason for reason in reasons if _EFFECTS.get(reason, LABELS) == LABELS)
