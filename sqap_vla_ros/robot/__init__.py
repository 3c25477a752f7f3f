"""Conversion of end-effector deltas to motion an arm can follow: numpy, scipy, OpenCV, Pinocchio; no ROS or torch."""
