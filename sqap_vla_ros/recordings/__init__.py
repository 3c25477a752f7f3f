"""Recordings as a policy reads them: what every kind of recording gives, and LeRobot datasets."""
