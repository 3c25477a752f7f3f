"""Quantisation: grids and rounding, rotations, packed linears, and the backends that multiply their integers."""
