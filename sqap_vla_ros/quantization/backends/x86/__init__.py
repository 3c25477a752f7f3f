"""Backends `amx` and `vnni`, whose four-bit weights stay packed in memory and are unpacked inside the kernel.

oneDNN needs a byte for each weight. These kernels (kernels.cpp) read half a byte, pack the activations into tiles once,
keep what they multiply in the caches, and apply both scales before they write. Gate and up of an MLP are one pass that
ends with SiLU and the product of the two. The innermost product is amx.h for CPUs with AMX, and vnni.h for those with
AVX512-VNNI alone.
"""
