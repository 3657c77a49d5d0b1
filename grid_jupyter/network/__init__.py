"""The Network: which Nodes there are, which of them live, and what they hold."""
