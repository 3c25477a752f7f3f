"""The kinds of grippers: one file for each, and the table of the parameter gripper_output."""
