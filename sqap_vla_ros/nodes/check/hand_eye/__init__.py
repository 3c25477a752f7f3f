"""`check --camera`: the projected tool against where it really is in the images. Nothing is moved."""
