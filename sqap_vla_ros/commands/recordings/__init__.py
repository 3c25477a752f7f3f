"""Options about recordings, shared by the sub-commands that read them."""
