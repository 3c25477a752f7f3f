"""Measures of compressed policies: in closed loop, on recordings, and on the real nodes."""
