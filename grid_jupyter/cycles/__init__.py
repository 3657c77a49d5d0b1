"""Model-centric training: a model that lives on this Node is trained by devices, cycle by cycle."""
