"""Recordings replayed through recipes: open-loop latency, memory, kept tokens and actions."""
