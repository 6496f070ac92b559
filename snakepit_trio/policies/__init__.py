"""Policies of a pool for calls that fail, are too frequent or take too long. Each is an option and off by default."""
