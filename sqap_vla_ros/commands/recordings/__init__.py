"""Sub-commands that read and write recordings, and the options about recordings that several sub-commands have."""
