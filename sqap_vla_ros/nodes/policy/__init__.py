"""`policy_node`: from the image to the command."""
