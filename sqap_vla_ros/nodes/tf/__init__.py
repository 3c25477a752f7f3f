"""Transforms: tf2_ros where it is installed, a stand-in with the same signatures elsewhere."""
