"""Measure a real server or engine, and write run records."""
