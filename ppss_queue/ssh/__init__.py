"""Reaching a master over SSH. `line` is what others use; paramiko is imported in this package alone."""
