"""The demonstration: the real pipeline with a simulated arm, its report and video, and a recording made without ROS."""
