"""A device as a script: takes part in training with the rows of a file, for as many rounds as it is told."""

import sys

import numpy

import grid_jupyter as sy


def said(trained):
    print(f"round {trained.cycle}:", trained.metrics, flush=True)


address, model, version, file, rounds = sys.argv[1:]
rows = numpy.load(file)
with sy.Device(address) as device:
    device.participate(
        model,
        version,
        data=(rows["x"], rows["y"]),
        held_out=(rows["held_out_x"], rows["held_out_y"]),
        cycles=int(rounds) or None,
        each=said,
    )
