"""The steps that a quantisation recipe may name: one file a kind of step, one class and one row a step.

`rotation` turns channels and `equalization` moves scales before rounding, `rounding` puts weights on their grid, and
`execution` holds and multiplies linears of a given activation width.
"""
