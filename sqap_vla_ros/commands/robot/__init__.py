"""Sub-commands that look at a running robot."""
