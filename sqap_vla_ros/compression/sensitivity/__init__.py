"""Row widths chosen by what each row's rounding does to the action (QVLA, Xu et al., ICLR 2026).

`objectives` differentiates the action head, `backward` carries that through the decoder layer by layer, `scores` turns
it into a number for every row and width, `allocation` chooses the widths, and `measured` checks scores against forward
passes.
"""
