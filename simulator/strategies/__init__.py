"""The library of strategies, one file each; `registry` finds them."""

from simulator.strategies.registry import Parameter, Strategy, get_strategy, list_strategies

__all__ = ["Parameter", "Strategy", "get_strategy", "list_strategies"]
