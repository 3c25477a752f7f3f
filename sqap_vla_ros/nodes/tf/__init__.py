"""Transforms. Import from `nodes.tf.api`: it is tf2_ros where that is installed, and the stand-ins here elsewhere."""
