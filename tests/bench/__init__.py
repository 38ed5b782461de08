"""Figures, each side by side with its baseline in one run. `./tests/bench/run` is the one command."""
