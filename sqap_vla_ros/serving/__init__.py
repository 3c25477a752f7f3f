"""The policy in a process of its own, and its supervision. The parent loads neither ROS nor torch."""
