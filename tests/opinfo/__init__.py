"""PyTorch's own operator database (OpInfo), run on a Node and compared with local torch: `python -m tests.opinfo`."""
