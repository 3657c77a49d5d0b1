"""Benchmarks: what the grid costs beside plain torch, sockets and files. `python -m benchmarks` lists them."""
