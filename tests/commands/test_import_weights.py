"""RepVGG classifiers against timm's: the same network, the same logits from its weights, and what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
import ultralytics.nn.tasks  # noqa: F401  before a test builds on the device "meta", where its constants would be made
from rich.console import Console
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from tests.helpers import assert_same, randomize_, relative_error
from yolorep import CheckpointError, Conv_C3, deploy
from yolorep.commands.import_weights import import_file, rep_state_dict
from yolorep.hosts.shipped import shipped
from yolorep.hosts.ultralytics.build import build
from yolorep.stock_layers import rep_blocks

# blocks of the stages after the first layer, width multipliers (arXiv 2101.03697), groups of every second layer
A, B, D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
NETWORKS = {
    "a0": (A, (0.75, 0.75, 0.75, 2.5), 1),
    "a1": (A, (1, 1, 1, 2.5), 1),
    "a2": (A, (1.5, 1.5, 1.5, 2.75), 1),
    "b0": (B, (1, 1, 1, 2.5), 1),
    "b1": (B, (2, 2, 2, 4), 1),
    "b1g2": (B, (2, 2, 2, 4), 2),
    "b1g4": (B, (2, 2, 2, 4), 4),
    "b2": (B, (2.5, 2.5, 2.5, 5), 1),
    "b2g2": (B, (2.5, 2.5, 2.5, 5), 2),
    "b2g4": (B, (2.5, 2.5, 2.5, 5), 4),
    "b3": (B, (3, 3, 3, 5), 1),
    "b3g2": (B, (3, 3, 3, 5), 2),
    "b3g4": (B, (3, 3, 3, 5), 4),
    "d2se": (D, (2.5, 2.5, 2.5, 5), 1),
}
TO_AUTHORS = (
    (r"^stem\.", "stage0."),
    (r"^stages\.(\d)\.", lambda match: f"stage{int(match[1]) + 1}."),
    (r"conv_kxk\.", "rbr_dense."),
    (r"conv_1x1\.", "rbr_1x1."),
    (r"(?<=\.)identity\.", "rbr_identity."),
    (r"reparam_conv\.", "rbr_reparam."),
    (r"attn\.fc1\.", "se.down."),
    (r"attn\.fc2\.", "se.up."),
    (r"^head\.fc\.", "linear."),
)


def theirs(name: str, classes: int = 1000) -> Any:
    """timm's network, in evaluation mode, with random batch norms of the eps that it trains with."""
    model = randomize_(timm.create_model(name, num_classes=classes)).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-5
    return model


def as_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict under the names that the authors' repository gives."""
    result = {}
    for key, value in state.items():
        for pattern, name in TO_AUTHORS:
            key = re.sub(pattern, name, key)
        result[key] = value
    return result


def with_weights(yaml: str, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    model = build(yaml, classes=len(state.get("head.fc.bias", state.get("linear.bias")))).to(dtype).eval()
    model.load_state_dict(rep_state_dict(state, model))
    return model


def test_every_network_is_shipped() -> None:
    assert {f"repvgg-{name}.yaml" for name in NETWORKS} == {name for name in shipped() if name.startswith("repvgg-")}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_follow_the_paper(name: str) -> None:
    depths, widths, grouped = NETWORKS[name]
    with torch.device("meta"):
        model = build(f"repvgg-{name}.yaml")
    first = min(64, int(64 * widths[0]))
    expected, channels = [(3, first, 2, 1)], first
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            groups = grouped if len(expected) % 2 == 0 else 1
            expected.append((channels, channels := int(64 * 2**stage * width), 1 if block else 2, groups))
    convs = [block.conv for block in model.modules() if isinstance(block, Conv_C3)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.groups) for c in convs] == expected
    if f"repvgg_{name}" in timm.list_models("repvgg_*"):  # it has no g2
        with torch.device("meta"):
            other = timm.create_model(f"repvgg_{name}")
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in other.parameters())


@pytest.mark.parametrize(
    ("name", "authors"), [("a0", False), ("a0", True), ("b1g4", False), ("d2se", False), ("d2se", True)]
)
def test_logits_are_those_of_timm(name: str, authors: bool) -> None:
    other, x = theirs(f"repvgg_{name}"), torch.rand(2, 3, 64, 64)
    state = as_authors(other.state_dict()) if authors else other.state_dict()
    with torch.inference_mode():
        probabilities, logits = with_weights(f"repvgg-{name}.yaml", state)(x)
        expected = other(x)
    assert_same(expected, logits)
    assert_same(expected.softmax(1), probabilities)


@pytest.mark.parametrize("authors", [False, True], ids=["timm", "authors"])
def test_folded_weights_give_the_logits_and_branches_that_add_nothing(authors: bool) -> None:
    other, x = theirs("repvgg_a0", 7).double(), torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = other(x)
    state = reparameterize_model(other).state_dict()
    model = with_weights("repvgg-a0.yaml", as_authors(state) if authors else state, torch.float64)
    assert_same(expected, model(x)[1])
    assert len(rep_blocks(model)) == 22
    gains = [
        v for k, v in model.state_dict().items() if ".branch_" in k and k.endswith(("bn.weight", "identity.weight"))
    ]
    assert gains
    assert not any(gain.any() for gain in gains)
    assert_same(expected, deploy(model)(x)[1])


def test_an_imported_checkpoint_predicts_as_timm_does_with_its_normalization(tmp_path: Path) -> None:
    from PIL import Image
    from timm.data import create_transform, resolve_data_config
    from ultralytics import YOLO

    other = theirs("repvgg_a0", 3)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in other.state_dict().items()}}, tmp_path / "in.pth"
    )
    random = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "image.png"), random.integers(0, 256, (224, 224, 3), dtype=np.uint8))

    import_file(tmp_path / "in.pth", "repvgg-a0.yaml", tmp_path / "out.pt", console=Console(quiet=True))

    transform = create_transform(**{**resolve_data_config({}, model=other), "crop_pct": 1.0})
    with torch.inference_mode():
        expected = other(transform(Image.open(tmp_path / "image.png"))[None])[0].softmax(0)
    model = YOLO(tmp_path / "out.pt")
    got = model.predict(tmp_path / "image.png", verbose=False, save=False, device="cpu")[0]
    assert model.task == "classify"
    assert len(got.names) == 3
    assert relative_error(expected, got.probs.data) < 1e-4  # two libraries' resampling and sum orders


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(timm.create_model("repvgg_a0", num_classes=2).state_dict())


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): value for key, value in state.items()}


def without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


# (what is done to the state dict, the YAML, what the error says)
REFUSED = {
    "another depth": (lambda s: s, "repvgg-b0.yaml", "it has 22 RepVGG blocks, the model has 28"),
    "another width": (
        lambda s: s,
        "repvgg-a1.yaml",
        r"model.0.conv.weight is \(48, 3, 3, 3\) in it, \(64, 3, 3, 3\) in",
    ),
    "with attention": (
        lambda s: {**s, "stem.attn.fc1.weight": torch.zeros(3, 48, 1, 1)},
        "repvgg-a0.yaml",
        "the model has no model.0.act.0.fc1.weight",
    ),
    "a branch lost": (
        lambda s: without(s, "stem.conv_1x1"),
        "repvgg-a0.yaml",
        "it has nothing for model.0.branch_1x1.conv.weight",
    ),
    "an unknown part": (
        lambda s: renamed(s, "conv_kxk", "conv_kxx"),
        "repvgg-a0.yaml",
        "'stem.conv_kxx.conv.weight' is not",
    ),
    "no head": (
        lambda s: renamed(s, "head.fc", "head.gc"),
        "repvgg-a0.yaml",
        "neither linear.weight nor head.fc.weight",
    ),
    "no classes": (
        lambda s: {**s, "head.fc.weight": torch.tensor(1.0)},
        "repvgg-a0.yaml",
        r"head.fc.weight is \(\) in .*in.pth; accepted: \(classes, features\)",
    ),
    "a folded block without its bias": (
        lambda s: {**without(s, "stem."), "stem.reparam_conv.weight": s["stem.conv_kxk.conv.weight"]},
        "repvgg-a0.yaml",
        "it has nothing for model.0.bn.bias",
    ),
    "names that are numbers": (lambda s: {0: torch.zeros(3)}, "repvgg-a0.yaml", "holds no state dict"),
    "a value": (lambda s: {**s, "epoch": 3}, "repvgg-a0.yaml", "holds no state dict"),
    "not a number": (
        lambda s: {**s, "head.fc.bias": torch.full_like(s["head.fc.bias"], float("nan"))},
        "repvgg-a0.yaml",
        "head.fc.bias holds NaN or infinite values",
    ),
    "an infinity": (
        lambda s: {**s, "stem.conv_kxk.bn.weight": s["stem.conv_kxk.bn.weight"] / 0},
        "repvgg-a0.yaml",
        "stem.conv_kxk.bn.weight holds NaN or infinite values",
    ),
    "a negative variance": (
        lambda s: {**s, "stem.conv_kxk.bn.running_var": -s["stem.conv_kxk.bn.running_var"]},
        "repvgg-a0.yaml",
        "stem.conv_kxk.bn.running_var holds a negative variance",
    ),
    "integers": (
        lambda s: {**s, "stem.conv_kxk.conv.weight": s["stem.conv_kxk.conv.weight"].int()},
        "repvgg-a0.yaml",
        "stem.conv_kxk.conv.weight holds torch.int32 values",
    ),
    "complex numbers": (
        lambda s: {**s, "stem.conv_kxk.conv.weight": s["stem.conv_kxk.conv.weight"] * 1j},
        "repvgg-a0.yaml",
        "stem.conv_kxk.conv.weight holds torch.complex64 values",
    ),
    "a detector": (lambda s: s, "yolov5n-rep.yaml", "it has 22 RepVGG blocks, the model has 28"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(
    case: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    change, yaml, says = REFUSED[case]
    torch.save(change(copy.copy(state)), tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=says):
        import_file(tmp_path / "in.pth", yaml, tmp_path / "out.pt", console=Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_file_that_is_no_state_dict_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"in\.pth (is not|does not exist)"):
        import_file(tmp_path / "in.pth", "repvgg-a0.yaml", tmp_path / "out.pt", console=Console(quiet=True))
