"""Time and memory of the package beside honest baselines; a suite a file, each with a function `run(repetitions)`."""
