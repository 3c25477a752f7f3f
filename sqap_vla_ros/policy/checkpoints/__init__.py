"""Checkpoints on disk: published folders and the package's own files, read, written and described."""
