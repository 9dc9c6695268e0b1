"""What the benchmark scripts share: `yolorep bench` with the settings of the recorded figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from yolorep.bench.measure import Settings, best_device
from yolorep.commands.bench import run
from yolorep.errors import YolorepError

RESULTS = Path(__file__).parent / "results"


def record(
    name: str,
    whats: Sequence[str],
    *,
    batches: Sequence[int],
    sizes: Sequence[int] = (),
    channels: int = 64,
    beside: Sequence[str] = (),
    description: str | None,
) -> None:
    """Run one recorded benchmark; its arguments are the defaults of the script's options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=whats, help=f"by default {' '.join(whats)}")
    parser.add_argument("--beside", nargs="*", default=beside, help="timed deployed, in the same rounds")
    parser.add_argument("--batch", nargs="+", type=int, default=batches)
    parser.add_argument("--imgsz", nargs="+", type=int, default=sizes)
    parser.add_argument("--channels", type=int, default=channels)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default=name, help="of the files in --out")
    options = parser.parse_args()
    layouts = ("contiguous", "channels_last")
    settings = Settings(
        tuple(options.batch), (), tuple(options.precision), layouts, options.device, options.rounds, options.threads
    )
    console = Console()
    try:
        run(
            options.what,
            settings,
            options.out / options.name,
            sizes=options.imgsz,
            channels=options.channels,
            others=options.beside,
            console=console,
        )
    except YolorepError as error:
        sys.exit(f"{parser.prog}: {error}")
