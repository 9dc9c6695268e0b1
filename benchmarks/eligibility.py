"""Which stock convolutions are worth branches: what each kind adds to a training step, and what it has of the network.

    python benchmarks/eligibility.py
    python benchmarks/eligibility.py yolo11s.yaml --block mobileone --imgsz 320

A model of ultralytics is expanded at all convolutions of one kind, and a training step of it timed in turn with one of
the stock model's. Prints and writes benchmarks/results/NAME.json. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from benchmark import RESULTS
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from yolorep import expand
from yolorep.atomic_files import written_whole
from yolorep.bench.measure import Settings, best_device
from yolorep.bench.report import machine
from yolorep.bench.timing import Spread, interleave
from yolorep.hosts.ultralytics.build import build
from yolorep.stock_layers import chosen, stock_convs

STOCK, DEFAULT = "stock", "default"


@dataclass(frozen=True)
class Kind:
    """What `layers` convolutions of one kind have of the network's, and cost it when they get branches.

    weights, products: shares of all its convolutions' weights and multiplications. step: of a training step, in
    units of the stock model's.
    """

    name: str
    layers: int
    weights: float
    products: float
    step: Spread


def main() -> None:
    """Measure, show and write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=["yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml"]
    )
    parser.add_argument("--block", default="repvgg")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="eligibility", help="of the file in --out")
    options = parser.parse_args()
    settings = Settings((options.batch,), (options.imgsz,), device=options.device, rounds=options.rounds)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    console, results = Console(), {}
    for model in options.models:
        with console.status(model):
            results[model] = measured(model, options)
        console.print(table(model, results[model]))
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(settings),
        "torch": torch.__version__,
        "block": options.block,
        "batch": options.batch,
        "imgsz": options.imgsz,
        "rounds": options.rounds,
        "results": {model: [asdict(kind) for kind in kinds] for model, kinds in results.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    with written_whole(options.out / f"{options.name}.json", "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")


def measured(what: str, options: argparse.Namespace) -> list[Kind]:
    """Every kind of convolution in one model."""
    torch.manual_seed(0)
    model = build(what).to(options.device)
    x = torch.rand(options.batch, 3, options.imgsz, options.imgsz, device=options.device)
    layers = dict(stock_convs(model))
    default = [name for name, _ in chosen([*layers.items()], None, options.block, "auto")]
    names = kinds(model, layers) | {DEFAULT: default}
    forms = {STOCK: model} | {kind: expand(model, options.block, select=mine) for kind, mine in names.items()}
    steps = {name: step_of(form, x) for name, form in forms.items()}
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
    """Names of the convolutions that a block of branches can stand beside, by kind."""
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
    """Whether a layer is part of an attention or of the head."""
    owners = [type(model.get_submodule(name.rpartition(".")[0])).__name__]
    if any("Attn" in owner or "Attention" in owner for owner in owners):
        return ", attention"
    return ", head" if name.startswith(f"model.{len(model.model) - 1}.") else ""


def step_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A training step without an optimizer's: forward, and backward from every output."""
    model.train().requires_grad_(True)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        outputs = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()

    return step


def sizes(model: nn.Module, x: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Weights and multiplications an image of every convolution, by the name of its layer."""
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
    """One row a kind: what it costs, and what it costs for each hundredth of the multiplications."""
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


if __name__ == "__main__":
    main()
