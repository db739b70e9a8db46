"""What arrives: length distributions of prompts and outputs."""

from simulator.workload.lengths import Empirical, Fixed, Lengths, LogNormal, Uniform, parse_lengths, read_lengths

__all__ = ["Empirical", "Fixed", "Lengths", "LogNormal", "Uniform", "parse_lengths", "read_lengths"]
