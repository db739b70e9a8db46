"""Data sheets of accelerators: read `hwspecs/*.toml` (or a user's own file), check them, apply a power mode.

A sheet states what the hardware IS, each figure with its source; nothing here predicts anything. Peak rates are
dense, bandwidth is the pin rate, link rates are per direction.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

import hwspecs
from simulator.errors import UserError, unknown_name

Positive = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]
PeakDtype = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp4"]

_SHEETS = Path(hwspecs.__file__).parent
_HINT = "see: simulate --list gpus"


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Device memory. `unified`: the CPU and the operating system live in the same memory (Jetson)."""

    kind: str
    capacity_byte: PositiveInt  # as the data sheet states it; the driver reports a little less
    bandwidth_byte_per_s: Positive  # pin rate
    unified: bool = False


class Compute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`peak_flop_per_s`: dense peak by data type (an operation is a multiply or an add; integers likewise).

    fp32 is the rate of the vector units; all other keys are matrix units with FP32 (int: INT32) accumulation.
    `sm_count` counts streaming multiprocessors (AMD: compute units, Intel: Xe cores).
    """

    sm_count: PositiveInt
    clock_hz: Positive  # the maximum (boost) clock, or the one that the stated peaks belong to
    l2_byte: PositiveInt
    peak_flop_per_s: dict[PeakDtype, Positive]


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Board (Jetson: module) power limit, and the power drawn when nothing runs."""

    limit_w: Positive
    idle_w: Positive
    board_limit_w: Positive | None = None  # what the board may draw without a cap; None: limit_w. Not for sheets.


class Interconnect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Links to other GPUs (`scale_up`) and to the host (`pcie`), bytes per second in ONE direction."""

    kind: str = "none"
    scale_up_byte_per_s: Positive | None = None
    pcie_byte_per_s: Positive | None = None
    gpus_per_node: PositiveInt = 1


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device costs, to rent or to buy, as of `date`."""

    usd_per_hour: Positive | None = None
    purchase_usd: Positive | None = None
    date: str = ""


class PowerMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One nvpmodel mode of a Jetson. A mode without a budget gets the sheet's `power.limit_w` on loading."""

    name: str
    aliases: tuple[str, ...] = ()
    power_budget_w: Positive | None = None
    sm_count: PositiveInt
    gpu_clock_hz: Positive
    memory_clock_hz: Positive
    cpu_cores: PositiveInt | None = None
    cpu_clock_hz: Positive | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator in one power mode; `sources` maps dotted field paths to where their figures come from."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vendor: str
    architecture: str
    compute_capability: str | None = None
    form_factor: str = ""
    released: str = ""
    memory: Memory
    compute: Compute
    power: Power
    interconnect: Interconnect = Interconnect()
    price: Price = Price()
    power_modes: tuple[PowerMode, ...] = ()
    default_power_mode: str | None = None
    power_mode: str | None = None  # the mode in force; None on devices without modes
    sources: dict[str, str] = {}

    def find_mode(self, name: str) -> PowerMode:
        """The power mode called `name` (any case). UserError when the device has no such mode, or none at all."""
        if not self.power_modes:
            raise UserError(
                f"GPU '{self.id}' has no power modes, so power mode '{name}' cannot be set; expected a cap like 300W"
            )
        for mode in self.power_modes:
            if _key(name) in map(_key, (mode.name, *mode.aliases)):
                return mode
        known = ", ".join(mode.name for mode in self.power_modes)
        raise UserError(f"unknown power mode '{name}' of GPU '{self.id}'; it has: {known}")

    def capped(self, limit_w: float) -> Device:
        """This device under a power cap of `limit_w`. UserError when that is not between idle and the board's limit."""
        board_limit_w = self.power.board_limit_w or self.power.limit_w
        if not self.power.idle_w < limit_w <= board_limit_w:
            raise UserError(
                f"power cap {limit_w:g} W of GPU '{self.id}': expected above {self.power.idle_w:g} W (idle) and at "
                f"most {board_limit_w:g} W (its limit)"
            )
        power = msgspec.structs.replace(self.power, limit_w=limit_w, board_limit_w=board_limit_w)
        return msgspec.structs.replace(self, power=power)

    def at_mode(self, name: str) -> Device:
        """This device in power mode `name`; a board without modes takes a power cap in watts instead ("300W").

        Peaks scale with SMs x clock, bandwidth with the memory clock, both relative to the mode in force;
        the mode's budget becomes the power limit. Idle power stays: it is not known per mode.
        """
        cap = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[wW]", name.strip())
        if not self.power_modes and cap:
            return self.capped(float(cap.group(1)))
        mode = self.find_mode(name)
        now = self.find_mode(self.power_mode or self.default_power_mode or "")
        compute_ratio = mode.sm_count * mode.gpu_clock_hz / (now.sm_count * now.gpu_clock_hz)
        memory_ratio = mode.memory_clock_hz / now.memory_clock_hz
        peaks = {dtype: peak * compute_ratio for dtype, peak in self.compute.peak_flop_per_s.items()}
        replace = msgspec.structs.replace
        return replace(
            self,
            power_mode=mode.name,
            compute=replace(self.compute, sm_count=mode.sm_count, clock_hz=mode.gpu_clock_hz, peak_flop_per_s=peaks),
            memory=replace(self.memory, bandwidth_byte_per_s=self.memory.bandwidth_byte_per_s * memory_ratio),
            power=replace(
                self.power,
                limit_w=mode.power_budget_w or self.power.limit_w,
                board_limit_w=self.power.board_limit_w or self.power.limit_w,
            ),
        )


def load_device(name_or_path: str | os.PathLike[str], power_mode: str | None = None) -> Device:
    """The device called `name_or_path`, in `power_mode` (default: the sheet's default mode).

    Takes an id, an alias, a full name (any case; what NVML calls the card works for most), or the path of a
    TOML sheet: anything that ends in .toml or holds a path separator. Raises UserError on any bad input.
    """
    wanted = os.fspath(name_or_path)
    if wanted.lower().endswith(".toml") or "/" in wanted or os.sep in wanted:
        path = Path(wanted).expanduser()
    else:
        path = _find_sheet(wanted)
    device = _read_sheet(path)
    return device if power_mode is None else device.at_mode(power_mode)


def list_devices() -> list[Device]:
    """Every bundled device in its default mode, sorted by id."""
    return [_read_sheet(path) for path in _sheet_paths()]


def _sheet_paths() -> list[Path]:
    return sorted(_SHEETS.glob("*.toml"))


def _key(name: str) -> str:
    """Spelling-insensitive form of a name: 'NVIDIA RTX A6000' and 'nvidia-rtx_a6000' are the same."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _find_sheet(name: str) -> Path:
    """The bundled sheet whose id, name or alias is `name`."""
    key = _key(name)
    path = _SHEETS / f"{key}.toml"
    if len(key) < 100 and path.is_file():
        return path
    known: list[str] = []
    for path in _sheet_paths():
        names = _names_in(path.read_text(encoding="utf-8"))
        if key in map(_key, names):
            return path
        known += [path.stem, *names]
    raise unknown_name("GPU", name, dict.fromkeys(known), _HINT)


def _names_in(text: str) -> list[str]:
    """Name and aliases of a sheet, found without parsing it: forty full parses would cost more than a run may."""
    head = text.split("\n[", 1)[0]
    found = re.findall(r'^name\s*=\s*"([^"]*)"', head, re.MULTILINE)
    for block in re.findall(r"^aliases\s*=\s*\[([^\]]*)\]", head, re.MULTILINE):
        found += re.findall(r'"([^"]*)"', block)
    return found


def _read_sheet(path: Path) -> Device:
    """Parse, validate and bring one sheet into its default power mode."""
    where = f"GPU file '{path}'"
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{where} does not exist; give a file, or a known GPU name ({_HINT})") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not valid TOML: {error}") from None
    _check_finite(table, where)
    try:
        device = msgspec.convert(table, Device)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}, {_field_message(str(error), table)}") from None
    return _checked(device, where)


def _check_finite(table: Any, where: str, field: str = "") -> None:
    """Refuse `inf` and `nan`, which are TOML floats but no figures."""
    if isinstance(table, dict):
        for key, value in table.items():
            _check_finite(value, where, f"{field}.{key}" if field else key)
    elif isinstance(table, list):
        for index, value in enumerate(table):
            _check_finite(value, where, f"{field}[{index}]")
    elif isinstance(table, float) and not math.isfinite(table):
        raise UserError(f"{where}, field {field}: found {table}, expected a finite number")


def _field_message(text: str, table: dict[str, Any]) -> str:
    """'field memory.unified: expected `bool`, got `str`' out of msgspec's 'Expected ... - at `$.memory.unified`'.

    Adds what the message leaves out: the number that is out of range, the data types that are known.
    """
    what, _, place = text.partition(" - at ")
    field = re.sub(r"^key in |\$\.?|\[\.\.\.\]", "", place.replace("`", ""))
    what = what[:1].lower() + what[1:]
    if what.startswith("invalid enum value"):
        what = f"unknown type {what.removeprefix('invalid enum value ')}, expected {', '.join(get_args(PeakDtype))}"
    elif ", got" not in what:
        value: Any = table
        for part in re.findall(r"[^.\[\]]+", field):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if isinstance(value, int | float):
            what += f", found {value:g}"
    return f"field {field}: {what}" if field else f"top level: {what}"


def _checked(device: Device, where: str) -> Device:
    """Rules that types cannot express; then fill in missing budgets and put the default mode in force."""
    peaks = device.compute.peak_flop_per_s
    if not {"fp16", "fp32"} <= set(peaks):
        raise UserError(f"{where}, field compute.peak_flop_per_s: found {sorted(peaks)}, expected at least fp16, fp32")
    if not re.fullmatch(r"[\w.-]{1,40}", device.architecture):
        raise UserError(f"{where}, field architecture: found '{device.architecture[:40]}', expected one short word")
    if device.memory.bandwidth_byte_per_s < 1e6 or min(peaks.values()) < 1e6:
        raise UserError(f"{where}: found a bandwidth or peak below 1e6 per second, expected byte/s and FLOP/s")
    if device.power.idle_w >= device.power.limit_w:
        raise UserError(
            f"{where}, field power.idle_w: found {device.power.idle_w:g} W, expected less than "
            f"power.limit_w = {device.power.limit_w:g} W"
        )
    if device.power.board_limit_w is not None:
        raise UserError(f"{where}, field power.board_limit_w: not allowed in a sheet, expected power.limit_w")
    if device.power_mode is not None:
        raise UserError(f"{where}, field power_mode: not allowed in a sheet, expected default_power_mode")
    if not device.power_modes:
        if device.default_power_mode is not None:
            raise UserError(
                f"{where}, field default_power_mode: found '{device.default_power_mode}', "
                "expected [[power_modes]] to define it"
            )
        return device
    return _with_modes(device, where)


def _with_modes(device: Device, where: str) -> Device:
    names = [_key(n) for mode in device.power_modes for n in (mode.name, *mode.aliases)]
    if len(set(names)) < len(names):
        raise UserError(f"{where}, field power_modes: found a name twice in {names}, expected unique names")
    default = device.default_power_mode
    if default is None or _key(default) not in names:
        raise UserError(
            f"{where}, field default_power_mode: found {default!r}, expected one of "
            + ", ".join(mode.name for mode in device.power_modes)
        )
    mode = device.find_mode(default)
    same_clock = math.isclose(mode.gpu_clock_hz, device.compute.clock_hz, rel_tol=1e-3)
    if mode.sm_count != device.compute.sm_count or not same_clock:
        raise UserError(
            f"{where}, power mode '{mode.name}': found {mode.sm_count} SMs at {mode.gpu_clock_hz:g} Hz, expected "
            f"the default mode to agree with compute ({device.compute.sm_count} SMs at {device.compute.clock_hz:g} Hz)"
        )
    limit_w = device.power.limit_w
    modes = tuple(
        msgspec.structs.replace(m, power_budget_w=limit_w if m.power_budget_w is None else m.power_budget_w)
        for m in device.power_modes
    )
    return msgspec.structs.replace(device, power_modes=modes).at_mode(mode.name)
