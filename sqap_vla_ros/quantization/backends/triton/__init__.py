"""Backend `triton` for GPUs: four-bit weights stay packed in memory and are unpacked inside the kernel.

The tensor cores multiply int8 by int8 into int32 (Hopper has no int4 ones), and both scales are applied before the
result is written. Four-bit weights take a quarter of bfloat16's memory; the arithmetic is int8's. Gate and up of an MLP
are one kernel that ends with SiLU and the product of the two. The activations come quantised by another kernel, for
reasons given in `activations`. The kernels' logic is tested with Triton's interpreter on a CPU, and they are compiled
to machine code there. They have not run on a GPU yet, so their speed is unmeasured.
"""
