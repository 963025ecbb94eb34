"""Experiments: each one command that can be stopped and started again, and writes a page in docs/results."""
