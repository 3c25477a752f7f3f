"""Judges the measured arm: its joints, its tool, and whether it goes where it is told to."""
