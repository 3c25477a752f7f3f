"""From noise to a chunk: the diffusion sampler, and chunks that go on from an earlier one."""
