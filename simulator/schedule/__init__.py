"""The language in which a strategy is written."""

from simulator.schedule.run import Barrier, Call, Run
from simulator.schedule.text import Text

__all__ = ["Barrier", "Call", "Run", "Text"]
