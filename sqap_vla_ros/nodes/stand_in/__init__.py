"""A kinematic stand-in of any arm that a URDF describes."""
