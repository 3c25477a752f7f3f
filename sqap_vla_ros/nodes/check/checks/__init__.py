"""The checks, by subject. Each is a function of a `Snapshot`; `table.CHECKS` lists them."""
