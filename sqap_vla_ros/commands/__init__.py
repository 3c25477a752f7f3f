"""The sub-commands of `sqap-vla`: every parser of the package, one file a command."""
