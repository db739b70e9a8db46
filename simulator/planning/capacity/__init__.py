"""Capacity: the cheapest deployments that meet limits on what users wait for, and what an edge device can do within
its power and time."""
