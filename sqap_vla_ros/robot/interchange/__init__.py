"""Actions, states and cameras in the forms that other software states them in."""
