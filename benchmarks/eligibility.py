"""Cost of branches beside each kind of stock convolution, and the share of the network that this kind has.

    python -m benchmarks eligibility
    python -m benchmarks eligibility yolo11s.yaml --block mobileone --imgsz 320

Expands a model of ultralytics at all convolutions of one kind, and times its training step interleaved with the step of
the stock model. Prints the table and writes results/NAME.json. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.runner import Recorder
from yolorep import expand
from yolorep.bench.record import torch_flags
from yolorep.bench.timing import Spread, interleave
from yolorep.bench.training import AUTOCASTS, default_autocast
from yolorep.hosts.ultralytics.build import build
from yolorep.placement import Layout, chosen
from yolorep.stock_layers import stock_convs

STOCK, DEFAULT = "stock", "default"
MODELS = ["yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml"]


@dataclass(frozen=True)
class Kind:
    """Convolutions of one kind in one model.

    layers: their number. weights, products: their share of the weights and multiplications of all convolutions.
    step: training step with branches beside them / step of the stock model.
    """

    name: str
    layers: int
    weights: float
    products: float
    step: Spread


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--block", default="repvgg")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--autocast", choices=AUTOCASTS, help="default: half on a GPU, as the hosts train, else none")
    parser.add_argument("--rounds", type=int, default=20)


def run(options: argparse.Namespace, recorder: Recorder) -> None:
    """Measure every model, print its table and write the record."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    options.autocast = options.autocast or default_autocast(torch.device(options.device))
    console, results = Console(), {}
    for model in options.models:
        with console.status(model):
            results[model] = measured(model, options)
        console.print(table(model, results[model]))
    schedule = {name: getattr(options, name) for name in ("block", "batch", "imgsz", "autocast", "rounds")}
    found = {model: [asdict(kind) for kind in kinds] for model, kinds in results.items()}
    recorder.write({**schedule, "results": found}, flags=torch_flags())


def measured(what: str, options: argparse.Namespace) -> list[Kind]:
    """Return every kind of convolution in one model, with its cost."""
    torch.manual_seed(0)
    model = build(what).to(options.device)
    x = torch.rand(options.batch, 3, options.imgsz, options.imgsz, device=options.device)
    layers = dict(stock_convs(model))
    default = [name for name, _ in chosen([*layers.items()], None, options.block, "auto", Layout.of(model, model.yaml))]
    names = kinds(model, layers) | {DEFAULT: default}
    forms = {STOCK: model} | {kind: expand(model, options.block, select=mine) for kind, mine in names.items()}
    steps = {name: step_of(form, x, AUTOCASTS[options.autocast]) for name, form in forms.items()}
    timing = interleave(steps, options.rounds, x.device)
    weights, products = sizes(model, x)
    return [
        Kind(
            kind,
            len(mine),
            sum(weights[name] for name in mine) / sum(weights.values()),
            sum(products[name] for name in mine) / sum(products.values()),
            timing.ratio(kind, STOCK),
        )
        for kind, mine in names.items()
    ]


def kinds(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Return the names of the convolutions that can get branches, by kind."""
    result: dict[str, list[str]] = {}
    for name, layer in layers.items():
        conv = layer.conv
        if any(k % 2 == 0 for k in conv.kernel_size):
            continue
        size = "x".join(map(str, conv.kernel_size))
        kind = f"depthwise {size}" if 1 < conv.groups == conv.in_channels else size
        if conv.kernel_size == (1, 1):
            kind += ", in = out" if conv.in_channels == conv.out_channels else ", in ≠ out"
        result.setdefault("stem" if name == "model.0" else kind + place(model, name), []).append(name)
    return dict(sorted(result.items()))


def place(model: nn.Module, name: str) -> str:
    """Return the suffix for a layer in an attention or in the head, else an empty string."""
    owners = [type(model.get_submodule(name.rpartition(".")[0])).__name__]
    if any("Attn" in owner or "Attention" in owner for owner in owners):
        return ", attention"
    return ", head" if name.startswith(f"model.{len(model.model) - 1}.") else ""


def step_of(model: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Callable[[], None]:
    """Return a training step without the optimizer: forward under autocast, backward from every output."""
    model.train().requires_grad_(True)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            outputs = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()

    return step


def sizes(model: nn.Module, x: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Return the weights, and the multiplications per image, of every convolution by the name of its layer."""
    weights, products = {}, {}
    hooks = []
    for name, conv in ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)):

        def note(module: nn.Module, _: object, y: Tensor, name: str = name.removesuffix(".conv")) -> None:
            weights[name] = module.weight.numel()
            products[name] = y[0, 0].numel() * module.weight.numel()

        hooks.append(conv.register_forward_hook(note))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return weights, products


def table(model: str, found: list[Kind]) -> Table:
    """Return the table: one row per kind."""
    view = Table(title=model, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("branches beside", no_wrap=True)
    for column in ("layers", "weights", "products", "step", "quartiles", "a layer"):
        view.add_column(column, justify="right", no_wrap=True)
    for kind in found:
        view.add_row(
            kind.name,
            str(kind.layers),
            f"{kind.weights:.1%}",
            f"{kind.products:.1%}",
            f"{kind.step.median:.3f}",
            f"{kind.step.low:.3f}-{kind.step.high:.3f}",
            f"{(kind.step.median - 1) / kind.layers:+.2%}",
        )
    return view
