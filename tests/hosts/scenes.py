"""Tiny data sets for every task of the hosts: rotated rectangles of two colours, and what each task labels of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Rectangle = tuple[int, np.ndarray]  # class, corners (4, 2) in pixels
COLOURS = ((40, 40, 220), (220, 80, 40))  # BGR
NAMES = ("red", "blue")


def write_scenes(folder: Path, task: str, *, train: int = 8, val: int = 4, size: int = 64, seed: int = 0) -> Path:
    """Paint a data set of a task of ultralytics; returns what `data=` takes: its YAML, or a classifier's folder.

    The labels of 'segment' are those of YOLOv5 trees too.
    """
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            if task == "classify":
                _write_classes(folder / split, index, random, size)
            else:
                _write_scene(folder, split, index, task, random, size)
    if task == "classify":
        return folder
    data = folder / "data.yaml"
    extra = "kpt_shape: [4, 3]\n" if task == "pose" else ""
    names = "names: [depth]\n" if task == "depth" else f"names: [{', '.join(NAMES)}]\n"
    data.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\n{extra}{names}")
    return data


def rectangle(kind: int, random: np.random.Generator, size: int) -> Rectangle:
    """One that is inside the image, turned by any angle."""
    centre = random.uniform(size * 0.35, size * 0.65, 2)
    width, height, angle = random.uniform(size * 0.25, size * 0.4), random.uniform(size * 0.2, size * 0.3), None
    angle = random.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    return kind, corners @ turn.T + centre


def _write_scene(folder: Path, split: str, index: int, task: str, random: np.random.Generator, size: int) -> None:
    image = random.integers(90, 130, (size, size, 3), dtype=np.uint8)
    depth = np.full((size, size), 4.0, np.float32)
    lines = []
    for kind in range(len(COLOURS)):
        found = rectangle(kind, random, size)
        corners = found[1].round().astype(np.int32)
        cv2.fillPoly(image, [corners], COLOURS[kind])
        cv2.fillPoly(depth, [corners], 2.0 + kind)
        if task in LABELS:
            lines.append(" ".join([str(kind), *(f"{value:.6f}" for value in LABELS[task](found[1] / size))]))
    for name in ("images", "depth" if task == "depth" else "labels"):
        (folder / name / split).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
    if task == "depth":
        np.save(folder / "depth" / split / f"{index}.npy", depth)
    else:
        (folder / "labels" / split / f"{index}.txt").write_text("\n".join(lines) + "\n")


def _write_classes(folder: Path, index: int, random: np.random.Generator, size: int) -> None:
    for kind, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 200, (size, size, 3), dtype=np.uint8)
        cv2.fillPoly(image, [rectangle(kind, random, size)[1].round().astype(np.int32)], COLOURS[kind])
        cv2.imwrite(str(folder / name / f"{index}.png"), image)


def _box(corners: np.ndarray) -> list[float]:
    low, high = corners.min(0), corners.max(0)
    return [*(low + high) / 2, *(high - low)]


def _keypoints(corners: np.ndarray) -> list[float]:
    return [*_box(corners), *(value for x, y in corners for value in (x, y, 2))]


def _corners(corners: np.ndarray) -> list[float]:
    return list(corners.ravel())


LABELS: dict[str, Callable[[np.ndarray], list[float]]] = {
    "detect": _box,
    "segment": _corners,
    "pose": _keypoints,
    "obb": _corners,
    "semantic": _corners,
}
