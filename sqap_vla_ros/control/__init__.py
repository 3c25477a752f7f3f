"""The arm's side of the policy node without ROS: the state machine, the motion it plans, and when an image is used."""
