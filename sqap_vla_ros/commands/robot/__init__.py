"""Sub-commands for a running robot."""
