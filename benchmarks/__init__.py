"""Benchmarks: what the grid costs beside plain torch, raw sockets and plain files. `python -m benchmarks` lists them."""
