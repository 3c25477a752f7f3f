"""Hand-eye sanity: how far the projected tool is from where the camera sees it, and which mistake explains that."""
