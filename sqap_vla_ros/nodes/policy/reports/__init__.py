"""Everything that `policy_node` publishes and that is not a command."""
