"""Schedules as JSON files: read, checked, flown and written."""
