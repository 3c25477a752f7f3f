"""A person's hand on a running `policy_node`, without the ros2 command line."""
