"""Recordings: reading, writing, playing, and the observations they hold."""
