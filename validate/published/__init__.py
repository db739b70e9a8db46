"""Published figures beside simulated ones: one module per paper, which defines TITLE, ABOUT and compare()."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from simulator.errors import unknown_name
from validate.published.comparison import Comparison


@dataclass(frozen=True)
class Paper:
    """All comparisons with one paper. `name` is that of its module."""

    name: str
    title: str
    about: str
    comparisons: tuple[Comparison, ...]


def paper_modules() -> dict[str, ModuleType]:
    """Every module of this folder that compares, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "compare")}


def compare_papers(names: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> list[Paper]:
    """The papers that `names` ask for, compared; all without names.

    A name is a module's, or a strategy's: then the comparisons of that strategy, from whichever paper. UserError with
    the nearest names for one that is neither.
    """
    modules = paper_modules()
    wanted, strategies = _asked(names, modules)
    chosen = list(modules) if strategies or not names else [name for name in modules if name in wanted]
    papers = []
    for done, name in enumerate(chosen, start=1):
        module = modules[name]
        found = tuple(module.compare())
        if names and name not in wanted:
            found = tuple(comparison for comparison in found if comparison.strategy in strategies)
        if found:
            papers.append(Paper(name, module.TITLE, module.ABOUT, found))
        if progress:
            progress(done, len(chosen))
    return papers


def _asked(names: Sequence[str], modules: dict[str, ModuleType]) -> tuple[set[str], set[str]]:
    """Names of papers, and of strategies that are no paper's name."""
    from simulator.strategies import list_strategies  # imports the whole library

    papers, strategies = set(), set()
    library = {name: found.name for found in list_strategies() for name in (found.name, *found.aliases)}
    for raw in names:
        name = raw.strip().lower().replace("-", "_")
        if name in modules:
            papers.add(name)
        elif name in library:
            strategies.add(library[name])
        else:
            known = sorted({*modules, *library.values()})
            raise unknown_name("paper or strategy", raw, known, f"papers: {', '.join(modules)}")
    return papers, strategies
