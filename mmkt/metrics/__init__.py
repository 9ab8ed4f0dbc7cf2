"""Metrics, one file each: pure functions of ``Predictions``."""
