"""Training of the small policy in the embedded simulator: demonstrations, imitation, corrections."""
