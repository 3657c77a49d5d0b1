"""Tensors that live elsewhere, as their holder sees them. docs/architecture.md has the picture."""
