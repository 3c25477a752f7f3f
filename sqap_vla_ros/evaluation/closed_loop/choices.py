"""Choices and defaults of a study. This module imports nothing, so that the command line can offer them at once."""

ENSEMBLES = ("none", "original", "by_time")
HORIZON = 8  # actions executed between two images
LOCKSTEP = 10  # episodes predicted together
