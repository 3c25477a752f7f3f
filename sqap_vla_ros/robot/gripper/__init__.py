"""The gripper: when it is commanded, what became of it, and its joint in the arm's trajectory."""
