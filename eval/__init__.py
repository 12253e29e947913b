"""Measuring: tasks, scoring, benchmarks."""
