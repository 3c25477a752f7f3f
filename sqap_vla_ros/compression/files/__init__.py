"""Compressed policies on disk: the format, and compressing layer by layer into it."""
