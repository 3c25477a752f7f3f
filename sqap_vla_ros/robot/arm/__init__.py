"""What an arm says about itself: its URDF and its joint states."""
