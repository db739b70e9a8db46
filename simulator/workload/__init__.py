"""What arrives: lengths of prompts and answers, arrival processes, synthetic loads and real traces."""

from simulator.workload.lengths import Empirical, Fixed, Lengths, LogNormal, Uniform, parse_lengths, read_lengths

__all__ = ["Empirical", "Fixed", "Lengths", "LogNormal", "Uniform", "parse_lengths", "read_lengths"]
