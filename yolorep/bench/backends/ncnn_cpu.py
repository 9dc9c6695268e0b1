"""Run a model with ncnn on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolorep.bench.backends.job import Job, Running, array, tensors
from yolorep.errors import UsageError


def run_ncnn(job: Job) -> Running:
    """Run the model with ncnn, image by image.

    Raises:
        UsageError: as `ncnn_files`.
    """
    import ncnn

    param = ncnn_files(job)
    net = ncnn.Net()
    net.opt.num_threads = job.threads
    net.load_param(str(param))
    net.load_model(str(param.with_suffix(".bin")))
    outputs = net.output_names()
    x = array(job.images)

    def call() -> list[Any]:
        found = []
        for image in x:  # ncnn has no batch axis
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(image))
            found.append([np.array(extractor.extract(name)[1]) for name in outputs])
        return [np.stack(column) for column in zip(*found, strict=True)]

    return Running(call, tensors, lambda images: np.copyto(x, images.numpy()), param)


# Loads the files and runs them once without torch; a model that ncnn cannot run crashes this process, not the caller's.
NCNN_PROBE = """
import sys, numpy, ncnn
net = ncnn.Net()
if net.load_param(sys.argv[1]) or net.load_model(sys.argv[2]) or not net.output_names():
    sys.exit("the files do not load")
extractor = net.create_extractor()
extractor.input("in0", ncnn.Mat(numpy.zeros([int(n) for n in sys.argv[3].split(",")], numpy.float32)))
sys.exit(any(extractor.extract(name)[0] for name in net.output_names()))
"""


def ncnn_files(job: Job) -> Path:
    """Return the model's `.param` file for ncnn, converted by pnnx from TorchScript.

    Raises:
        UsageError: pnnx does not convert the model, or ncnn cannot run it.
    """
    import pnnx

    param = job.folder / "model.ncnn.param"
    one = job.images[:1]
    job.model(one)  # the head keeps its anchors for this shape, and they are traced as constants
    torch.jit.trace(job.model, one, check_trace=False).save(str(job.folder / "model.pt"))
    shape = ",".join(map(str, one.shape))
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    quiet: dict[str, Any] = {"capture_output": True, "cwd": job.folder, "env": environment, "check": False}
    subprocess.run([pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"], **quiet)
    if not param.exists():
        raise UsageError("pnnx does not convert this model")
    arguments = [str(param), str(param.with_suffix(".bin")), ",".join(map(str, one.shape[1:]))]
    if subprocess.run([sys.executable, "-c", NCNN_PROBE, *arguments], **quiet).returncode:
        raise UsageError("ncnn cannot run this model")
    return param
