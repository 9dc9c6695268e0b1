"""The embedded data set: shapes painted on textured backgrounds, in YOLO's layout, equal for equal seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("disc", "triangle", "star", "ring", "cross")
SUBPIXELS = 4  # fractional bits of a corner's position, for smooth edges
HIDDEN = 0.35  # largest share of a box that a later shape may cover
Image = NDArray[np.uint8]
Points = NDArray[np.float64]
Canvas = NDArray[np.float32]


@dataclass(frozen=True)
class Box:
    """A labelled box, in pixels."""

    label: int
    x1: float
    y1: float
    x2: float
    y2: float

    def covered_by(self, other: Box) -> float:
        """Return the share of this box that lies in `other`."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0.0) * max(height, 0.0) / ((self.x2 - self.x1) * (self.y2 - self.y1))

    def row(self, side: int) -> str:
        """Return the line of a YOLO label file: class, then centre and size as fractions of the image."""
        centre = (self.x1 + self.x2) / 2 / side, (self.y1 + self.y2) / 2 / side
        size = (self.x2 - self.x1) / side, (self.y2 - self.y1) / side
        return " ".join([str(self.label), *(f"{value:.6f}" for value in (*centre, *size))])


def make(folder: Path, *, train: int, val: int, side: int, seed: int = 0) -> Path:
    """Write the data set below `folder` and return its data.yaml.

    train, val: numbers of images. side: their height and width in pixels.

    Raises:
        OSError: a file cannot be written.
    """
    for index, (split, count) in enumerate((("train", train), ("val", val))):
        random = np.random.default_rng((seed, index))
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            image, boxes = scene(random, side)
            encoded = cv2.imencode(".png", image)[1].tobytes()
            (images / f"{number:04}.png").write_bytes(encoded)  # cv2.imwrite is silent when the disk is full
            (labels / f"{number:04}.txt").write_text("".join(f"{box.row(side)}\n" for box in boxes))
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    data = folder / "data.yaml"
    data.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def files(folder: Path, *, train: int, val: int) -> list[Path]:
    """Return every file that `make` writes."""
    found = [folder / "data.yaml"]
    for split, number in (("train", train), ("val", val)):
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            found += [folder / kind / split / f"{index:04}.{suffix}" for index in range(number)]
    return found


def scene(random: np.random.Generator, side: int) -> tuple[Image, list[Box]]:
    """Paint one image, (side, side, 3) BGR, with two to six shapes; returns it with their boxes."""
    canvas = _texture(random, side, side, contrast=random.uniform(20, 60))
    boxes: list[Box] = []
    for _ in range(random.integers(2, 7)):
        label = int(random.integers(len(CLASSES)))
        contours = _placed(random, outline(CLASSES[label]), side)
        box = _box(label, np.concatenate(contours))
        if all(other.covered_by(box) < HIDDEN and box.covered_by(other) < HIDDEN for other in boxes):
            _paint(random, canvas, contours, box)
            boxes.append(box)
    noise = random.standard_normal(canvas.shape, np.float32) * random.uniform(2, 8)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), boxes


def outline(name: str) -> list[Points]:
    """Return the contours of a class within the unit circle, (n, 2) each; a second contour is a hole."""
    if name == "disc":
        return [_polygon(40)]
    if name == "ring":
        return [_polygon(40), 0.55 * _polygon(40)]
    if name == "triangle":
        return [_polygon(3)]
    if name == "star":
        return [_polygon(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]]
    arm = 0.32
    corner = np.array([[arm, arm], [1, arm], [1, -arm]])  # one arm of the cross; the other three are rotations of it
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in -np.pi / 2 * np.arange(4)]
    return [np.concatenate([corner @ turn.T for turn in turns])]


def _polygon(corners: int) -> Points:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _placed(random: np.random.Generator, contours: list[Points], side: int) -> list[Points]:
    """Rotate, stretch, scale and move the contours so that they fit into a square of `side` pixels."""
    angle, stretch = random.uniform(0, 2 * np.pi), random.uniform(0.85, 1.15)
    radius = side * np.exp(random.uniform(np.log(0.07), np.log(0.2)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = radius * np.array([stretch, 1 / stretch])
    centre = random.uniform(1.2 * radius, side - 1.2 * radius, 2)
    return [contour @ turn.T * scale + centre for contour in contours]


def _box(label: int, points: Points) -> Box:
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    return Box(label, float(x1), float(y1), float(x2), float(y2))


def _paint(random: np.random.Generator, canvas: Canvas, contours: list[Points], box: Box) -> None:
    x, y = int(box.x1), int(box.y1)
    window = canvas[y : int(box.y2) + 2, x : int(box.x2) + 2]
    height, width = window.shape[:2]
    corners = [((c - (x, y)) * 2**SUBPIXELS).round().astype(np.int32) for c in contours]
    mask = cv2.fillPoly(np.zeros((height, width), np.uint8), corners, 255, cv2.LINE_AA, SUBPIXELS)
    fill = _texture(random, height, width, contrast=random.uniform(0, 45))
    away = fill.mean((0, 1)) - window.mean((0, 1))
    if np.abs(away).max() < 60:  # otherwise the shape would be invisible
        fill += np.where(away < 0, -60, 60).astype(np.float32)
    window += (mask[..., None] / np.float32(255)) * (fill - window)


def _texture(random: np.random.Generator, height: int, width: int, contrast: float) -> Canvas:
    """Return a colour with a gradient, stripes and blotches, (height, width, 3)."""
    angle, waves = random.uniform(0, np.pi), random.uniform(2, 14)
    across, down = (np.linspace(-1, 1, n, dtype=np.float32) for n in (width, height))
    along = np.float32(np.cos(angle)) * across[None, :] + np.float32(np.sin(angle)) * down[:, None]
    stripes = np.sin(along * np.float32(waves * np.pi) + np.float32(random.uniform(0, 2 * np.pi)))
    coarse = random.standard_normal((8, 8), np.float32)
    blotches = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    gain = random.uniform((0, 0, 0), (1, 0.5, 0.6)).astype(np.float32)
    pattern = gain[0] * along + gain[1] * stripes + gain[2] * blotches
    colour, tint = random.uniform(30, 225, 3), contrast * random.uniform(0.5, 1.0, 3)
    return colour.astype(np.float32) + pattern[..., None] * tint.astype(np.float32)
