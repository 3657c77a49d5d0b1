"""The command line: it puts processes together, and does nothing else."""
