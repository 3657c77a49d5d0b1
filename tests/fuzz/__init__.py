"""Hostile arguments for every operation on the allow-list: `python -m tests.fuzz --help`."""
