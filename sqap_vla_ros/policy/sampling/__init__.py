"""The diffusion sampler, from noise to a chunk, and chunks that continue an earlier one."""
