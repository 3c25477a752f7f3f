"""The nodes that belong together, as launch descriptions or child processes."""
