"""Recipes, the demo, the benchmark and the experiments: thin, with no logic that a project could use."""
