"""Commands that write one file at the same time: one of them does, and the others say that it exists."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch
from torch import nn

from yolorep import CheckpointError
from yolorep.hosts import checkpoints

WRITERS = 8


def test_one_writer_wins_and_the_others_are_told(tmp_path: Path) -> None:
    """The check for the file comes before the model is folded; another command may write it in the meantime."""
    source = checkpoints.Checkpoint(tmp_path / "in.pt", "ultralytics", {}, nn.Conv2d(1, 1, 1))
    models, gate = [nn.Conv2d(1, index + 1, 1) for index in range(WRITERS)], Barrier(WRITERS)

    def write(model: nn.Module) -> str:
        gate.wait()
        try:
            checkpoints.save(source, model, tmp_path / "out.pt")
        except CheckpointError as error:
            return str(error)
        return "written"

    with ThreadPoolExecutor(WRITERS) as pool:
        told = list(pool.map(write, models))
    winner = told.index("written")
    others = [text for index, text in enumerate(told) if index != winner]
    assert others == [f"{tmp_path / 'out.pt'} exists; choose another name, or --overwrite"] * (WRITERS - 1)
    kept = torch.load(tmp_path / "out.pt", weights_only=False)["model"]
    assert kept.out_channels == models[winner].out_channels
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
