"""Which nodes belong together, as launch descriptions or child processes."""
