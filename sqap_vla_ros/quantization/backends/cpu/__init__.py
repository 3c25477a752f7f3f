"""The backends of CPUs, whose four-bit weights stay packed in memory and are unpacked inside the kernel.

Others need a byte for each weight. These kernels (kernels/kernels.cpp) read half a byte, pack the activations into
tiles once, keep what they multiply in the caches, and apply both scales before they write. Gate and up of an MLP are
one pass that ends with SiLU and the product of the two. `units.py` lists the processors' units; each has an innermost
product of its own, all else is common source. Accumulators are equal on all of them.
"""
