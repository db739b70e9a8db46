"""Every kind of fault that is injected, in the order of the classes."""

from __future__ import annotations

from validate.finding import fault_classes
from validate.self_test import (
    kinds_bounds,
    kinds_definitions,
    kinds_shape,
    kinds_system,
    kinds_trust,
    kinds_units,
    kinds_validity,
    kinds_views,
    kinds_workload,
)
from validate.self_test.injection import Injector

_MODULES = (
    kinds_system, kinds_units, kinds_bounds, kinds_definitions, kinds_views, kinds_shape, kinds_workload,
    kinds_validity, kinds_trust,
)  # fmt: skip
_ORDER = list(fault_classes())
INJECTORS: tuple[Injector, ...] = tuple(
    sorted((i for module in _MODULES for i in module.INJECTORS), key=lambda injector: _ORDER.index(injector.fault))
)
