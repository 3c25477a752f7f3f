"""Commands of `policy_node`: one file for each output mode, one for the gripper, and the tables that list them."""
