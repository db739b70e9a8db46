"""What an hour on a device costs: rent, or the purchase price written off, and electricity."""

from __future__ import annotations

import math
from typing import Any

from simulator.device import Device
from simulator.errors import UserError

WRITE_OFF_YEARS = 3.0
WRITE_OFF_HOURS = WRITE_OFF_YEARS * 365.25 * 24.0
DEFAULT_USD_PER_KWH = 0.15


def check_prices(**usd: float | None) -> None:
    """UserError for a price that is not a finite number >= 0; None is no price."""
    for name, value in usd.items():
        if value is not None and not (math.isfinite(value) and value >= 0.0):
            raise UserError(f"{name} must be a finite number >= 0, got {value}")


def price_of(
    device: Device, usd_per_hour: float | None = None, usd_per_kwh: float | None = None, devices: int = 1
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Rates for a run on `devices` of this kind, and the assumptions behind them; given rates are per device.

    The dict has usd_per_hour [USD/h of wall time] and usd_per_kwh [USD/kWh of energy] (NaN: not stated), the data
    sheet's purchase_usd and date, and `basis`, a phrase. Given rates replace those of the data sheet. Rent includes
    electricity; a bought device is written off over 3 years of continuous use and pays electricity.
    """
    price = device.price
    rent = usd_per_hour if usd_per_hour is not None else price.usd_per_hour
    dated = f", {price.date}" if price.date else ""
    notes: tuple[str, ...]
    if rent is not None:
        electricity = 0.0 if usd_per_kwh is None else usd_per_kwh
        origin = "as given" if usd_per_hour is not None else f"data sheet{dated}"
        extra = "electricity included" if usd_per_kwh is None else f"plus electricity at ${usd_per_kwh:g}/kWh"
        hourly, basis = rent, f"rent ${rent:g}/h ({origin}), {extra}"
        notes = (f"cost: {basis}; only the time of the flight is paid",)
    elif price.purchase_usd is not None:
        electricity = DEFAULT_USD_PER_KWH if usd_per_kwh is None else usd_per_kwh
        hourly = price.purchase_usd / WRITE_OFF_HOURS
        origin = "assumed" if usd_per_kwh is None else "as given"
        basis = f"${price.purchase_usd:,.0f} over {WRITE_OFF_YEARS:g} years + electricity at ${electricity:g}/kWh"
        notes = (
            f"cost: purchase price ${price.purchase_usd:,.0f} (data sheet{dated}) written off over {WRITE_OFF_YEARS:g} "
            f"years of continuous use, electricity at ${electricity:g}/kWh ({origin})",
        )
    else:
        electricity = math.nan if usd_per_kwh is None else usd_per_kwh
        hourly = math.nan
        basis = "the data sheet has no price; see --usd-per-hour"
        notes = ()
    return {
        "usd_per_hour": hourly * devices,
        "usd_per_kwh": electricity,
        "purchase_usd": price.purchase_usd,
        "date": price.date or None,
        "basis": basis if devices == 1 else f"{devices} x ({basis})",
    }, notes
