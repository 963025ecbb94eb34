"""Recipes and the benchmark: thin, with no logic of their own."""
