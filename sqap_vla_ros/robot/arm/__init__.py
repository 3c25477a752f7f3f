"""The description of an arm."""
