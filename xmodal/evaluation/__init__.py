"""Ranks, protocols and reports."""
