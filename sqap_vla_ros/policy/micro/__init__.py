"""A policy of a few hundred kilobytes with random weights, for trying things out."""
