"""A healthy robot without DDS, for faults to be planted in."""
