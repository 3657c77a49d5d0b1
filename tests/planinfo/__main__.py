"""`python -m tests.planinfo`: prints how each layer does as a plan, and the sums; exit code 1 if one differs."""

from __future__ import annotations

import sys
from collections import Counter

import torch

from .layers import entries
from .trial import AGREES, DIFFERS, REFUSED, trial


def main(names: list[str]) -> int:
    """Tries the layers with these names, or all."""
    torch.set_num_threads(1)
    every = entries()
    verdicts = []
    for name in names or every:
        verdicts.append(trial(name, every[name]))
        print(f"{name:<36}{verdicts[-1].outcome:<10}{verdicts[-1].reason}", flush=True)
    counts = Counter(verdict.outcome for verdict in verdicts)
    print(f"\n{len(verdicts)} layers: " + ", ".join(f"{counts[one]} {one}" for one in (AGREES, REFUSED, DIFFERS)))
    return int(counts[DIFFERS] > 0)


sys.exit(main(sys.argv[1:]))
