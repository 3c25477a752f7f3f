"""Compression of a policy: from a recipe and a checkpoint to the policy that runs."""
