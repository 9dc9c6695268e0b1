"""The quantization schemes that `yolorep quantize` compares, and the packages that each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from yolorep.errors import UsageError


@dataclass(frozen=True)
class Scheme:
    """One way to quantize a network to 8 bits.

    tool: "onnxruntime" (`quantize_static`, QDQ) or "nncf" (`nncf.quantize`).
    per_channel: one weight scale per output channel instead of one per tensor.
    symmetric: activations are quantized symmetrically around zero, else with a zero point.
    ranges: of activations: "minmax"; "percentile" ignores the largest and the smallest 0.01 % of the values; "mse" has
        a small squared error of rounding and clipping together, found by a search over candidates (`mse_range`).
    reduced: weights of 7 bits. Processors without VNNI add two products of 8 by 8 bits in 16 bits, which can saturate.
    bias_correction: shift each bias by the mean error that quantization adds to its channel (arXiv 1906.04721).
    equalize: rescale the channels between two convolutions that only a ReLU separates (arXiv 1906.04721).
    """

    name: str
    tool: str
    per_channel: bool = True
    symmetric: bool = False
    ranges: Literal["minmax", "percentile", "mse"] = "minmax"
    reduced: bool = False
    bias_correction: bool = False
    equalize: bool = False


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("minmax", "onnxruntime"),
        Scheme("minmax-tensor", "onnxruntime", per_channel=False),
        Scheme("symmetric", "onnxruntime", symmetric=True),
        Scheme("symmetric-tensor", "onnxruntime", per_channel=False, symmetric=True),
        Scheme("minmax-reduced", "onnxruntime", reduced=True),
        Scheme("percentile", "onnxruntime", ranges="percentile"),
        Scheme("percentile-tensor", "onnxruntime", per_channel=False, ranges="percentile"),
        Scheme("mse", "onnxruntime", ranges="mse"),
        Scheme("mse-tensor", "onnxruntime", per_channel=False, ranges="mse"),
        Scheme("nncf", "nncf", bias_correction=True),
        Scheme("nncf-tensor", "nncf", per_channel=False, bias_correction=True),
        Scheme("nncf-uncorrected", "nncf"),
        Scheme("nncf-percentile", "nncf", ranges="percentile", bias_correction=True),
        Scheme("nncf-equalized", "nncf", bias_correction=True, equalize=True),
    )
}
# In the order in which they are tried: the first is the fastest on most processors, the second the most accurate.
DEFAULTS = {"onnx": ("minmax", "nncf"), "openvino": ("nncf",)}


def chosen_schemes(names: Sequence[str], target: str) -> list[Scheme]:
    """Return the schemes of these names, or the default ones of `target` ("onnx" or "openvino") where there are none.

    Raises:
        UsageError: an unknown scheme, one that `target` cannot run, or a package that is missing.
    """
    if names == ["all"]:
        names = [name for name, scheme in SCHEMES.items() if target == "onnx" or scheme.tool == "nncf"]
    unknown = [name for name in names if name not in SCHEMES]
    if unknown:
        raise UsageError(f"scheme {unknown[0]!r} is unknown; accepted: all, {', '.join(SCHEMES)}")
    schemes = [SCHEMES[name] for name in names or DEFAULTS[target]]
    if target == "openvino" and any(scheme.tool != "nncf" for scheme in schemes):
        wrong = next(scheme.name for scheme in schemes if scheme.tool != "nncf")
        raise UsageError(f"scheme {wrong!r} writes ONNX only; accepted for OpenVINO: the schemes that begin with nncf")
    tools = {scheme.tool for scheme in schemes}
    needed = ["onnx", "onnxruntime", *(["openvino"] if target == "openvino" else [])]
    check_installed([*needed, *sorted(tools - {"onnxruntime"})])
    return schemes


def check_installed(packages: Sequence[str]) -> None:
    """Check that packages can be imported.

    Raises:
        UsageError: one of them is missing; the sentence has the command that installs all of them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        line = " ".join(["pip install", *missing])
        raise UsageError(f"quantize needs {', '.join(missing)}; install: {line} (or pip install 'yolorep[quantize]')")
