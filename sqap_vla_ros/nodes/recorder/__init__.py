"""Runs of the live node, recorded for reports."""
