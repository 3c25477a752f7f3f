"""Commands of `policy_node` to the arm: one file for each output mode, and the table that lists them."""
