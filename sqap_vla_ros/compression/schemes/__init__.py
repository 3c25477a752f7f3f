"""What a quantisation recipe may name, one file a question and one class and one row an answer.

`rotation`: what is turned before. `equalization`: which scales are moved before. `rounding`: how weights are rounded.
`execution`: how linears of a given activation width are held and multiplied.
"""
