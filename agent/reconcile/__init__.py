"""Desired against applied: deltas, order of application, outcomes, status."""
