"""policy_node in stepped time: its engine without a middleware, a cell around it, and the judge of its commands."""
