"""Recorded requests of an agent, read as a schedule."""
