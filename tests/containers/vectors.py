"""Run the conformance vectors by ONNX Runtime and keep what comes out: vectors.py VECTORS OUTPUT.

Twenty steps of each training step are run besides, on the values that the vectors bring. Needs the bare package.
"""

import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

from grid_jupyter.plans.engine import Training
from grid_jupyter.plans.onnx_engine import OnnxEngine
from grid_jupyter.plans.reader import read_plan

vectors, found = Path(sys.argv[1]), {}
for path in sorted(vectors.glob("*.json")):
    document, tensors = read_plan(path.read_bytes()), load_file(path.with_suffix(".safetensors"))
    program = OnnxEngine(threads=1).load(document)
    batches = sorted({key.partition(":")[0] for key in tensors if key.startswith("B")})

    def given(batch, role, name, tensors=tensors):
        key = f"in:{role}:{name}"
        return tensors[key] if key in tensors else tensors[f"{batch}:{key}"]

    for batch in batches:
        values = [program.native(given(batch, one.role, one.name)) for one in program.inputs]
        for output, value in zip(document.outputs, program.run(values), strict=True):
            found[f"{path.stem}:{batch}:{output.role}:{output.name}"] = numpy.array(value)
    if path.stem.startswith("forward-"):
        continue
    start = {role: {} for role in ("param", "buffer", "state", "hyper")}
    for one in program.inputs:
        if one.role in start:
            start[one.role][one.name] = program.native(tensors[f"in:{one.role}:{one.name}"])
    training = Training(program, *start.values(), seed=7)
    for step in range(20):
        batch = batches[step % len(batches)]
        x, y = given(batch, "x", "x"), given(batch, "y", "y")
        training.step({"x": x}, {"y": y}, len(x))
    found |= {f"{path.stem}:after 20 steps:{name}": numpy.array(value) for name, value in training.params.items()}
save_file(found, sys.argv[2])
