"""The plan of a comparison: its arms, seeds and schedule, as they are read from ARG=VALUE arguments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolorep.bench.record import read_json
from yolorep.errors import UsageError
from yolorep.hosts.train_options import OF_REP, value_of
from yolorep.policy import Policy

STOCK = "stock"
SWEEP_SEED = 90210  # of the runs that choose a learning rate; none of the seeds that are compared
FIXED = ("seed", "project", "name", "exist_ok", "resume", "mode", "task", "save", "val", "time", "save_dir")
FACTORS = (1.0, 2.0, 4.0)
EQUAL_EPOCHS, EQUAL_TIME, SWEEP = "equal epochs", "equal time", "sweep"


@dataclass(frozen=True)
class Arm:
    """One kind of model.

    rep: a policy as YAML; None for stock. network: a model of its own, as `model=` takes it; None for the plan's.
    """

    name: str
    rep: dict[str, Any] | None = None
    network: str | None = None

    @classmethod
    def of(cls, text: str) -> Arm:
        """Read the value of a `rep=` argument: a block, or a mapping with `block`, `identity`, `select` and `start`.

        Raises:
            BlockError, UsageError: it is not accepted.

        Example:
            >>> Arm.of("csla").name, Arm.of("{block: repvgg, identity: none, select: [4]}").name
            ('csla', 'repvgg, identity none, select 4')
        """
        policy = Policy.from_yaml(value_of("rep", text))
        written = policy.to_yaml()
        shown = {name: written[name] for name in OF_REP if name in written and written[name] != "auto"}
        more = [f"{key} {' '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in shown.items()]
        return cls(", ".join([policy.block, *more]), written)

    @classmethod
    def of_network(cls, file: str) -> Arm:
        """Read the value of a `network=` argument: another model, named by its file.

        Raises:
            UsageError: no file's name, or the name of the stock arm.

        Example:
            >>> Arm.of_network("yolov5n-csprepresnet.yaml").name
            'yolov5n-csprepresnet'
        """
        arm = cls(Path(file).stem, network=file)
        if not arm.slug or arm.slug == STOCK:
            raise UsageError(
                f"network={file} is not accepted; accepted: a model YAML or a checkpoint, not named {STOCK}"
            )
        return arm

    @property
    def slug(self) -> str:
        return re.sub(r"(?:[^\w.]|_)+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Run:
    """One training. factor: of the learning rate. stage: why it is trained."""

    arm: Arm
    seed: int
    factor: float
    epochs: int
    stage: str = EQUAL_EPOCHS

    @property
    def name(self) -> str:
        """The name of its folder."""
        seed = "sweep" if self.seed == SWEEP_SEED else f"seed{self.seed}"
        return f"{self.arm.slug}-{seed}-lr{self.factor:g}-{self.epochs}"


@dataclass(frozen=True)
class Plan:
    """A comparison.

    model, data: as ultralytics' `train` takes them. arms: stock first. seeds: number of paired seeds.
    factors: multiples of the learning rate that the sweep tries. sweep_epochs: length of its runs.
    train: further arguments of ultralytics' `train`. int8: whether the deployed models are quantized too.
    """

    model: str
    data: str
    arms: tuple[Arm, ...]
    seeds: int = 3
    epochs: int = 100
    factors: tuple[float, ...] = FACTORS
    sweep_epochs: int = 50
    train: dict[str, Any] = field(default_factory=dict)
    int8: bool = False

    @property
    def imgsz(self) -> int:
        return int(self.train["imgsz"])

    @property
    def device(self) -> str:
        return str(self.train.get("device", "cpu"))

    def record(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def check_continues(self, file: Path) -> None:
        """Check that the runs beside an earlier plan belong to this one; seeds and arms may be added.

        Raises:
            UsageError: another schedule, or a damaged file.
        """
        if not file.is_file():
            return
        before, now = read_json(file), self.record()
        for name in ("model", "data", "epochs", "factors", "sweep_epochs", "train"):
            if before.get(name) != now[name]:
                held, asked = _short(before.get(name)), _short(now[name])
                raise UsageError(
                    f"{file.parent} holds a comparison with {name} {held}, not {asked}; "
                    "accepted: the same settings, with which it goes on, or another out=FOLDER"
                )


def read(pairs: Sequence[tuple[str, Any]], reps: Sequence[str], networks: Sequence[str] = ()) -> Plan:
    """Return the plan of ARG=VALUE arguments.

    pairs: names and values, in order. reps, networks: the values of `rep=` and `network=`.

    Raises:
        UsageError: an argument is missing, or has a value that is not accepted.
        BlockError: as `Arm.of`.
    """
    given = dict(pairs)
    _check_names(given)
    blocks = reps or (() if networks else ("repvgg",))
    arms = (Arm(STOCK), *(Arm.of(text) for text in blocks), *(Arm.of_network(file) for file in networks))
    names = [arm.name for arm in arms]
    if len({arm.slug for arm in arms}) < len(names):
        raise UsageError(
            f"two candidates have one name; accepted: each rep= and each network= once ({', '.join(names[1:])})"
        )
    epochs = _count(given.pop("epochs", 100), "epochs")
    factors = _factors(given.pop("lr", FACTORS))
    return Plan(
        str(given.pop("model")),
        str(given.pop("data")),
        arms,
        seeds=_count(given.pop("seeds", 3), "seeds"),
        epochs=epochs,
        factors=factors,
        sweep_epochs=_count(given.pop("sweep", max(1, epochs // 2)), "sweep"),
        int8=_flag(given.pop("int8", False)),
        train=_with_defaults(given),
    )


def _check_names(given: Mapping[str, Any]) -> None:
    for name in ("model", "data"):
        if not given.get(name):
            raise UsageError(
                f"compare has no {name}=; accepted: yolorep compare model=yolov5n.yaml data=data.yaml rep=repvgg"
            )
    for name in FIXED:
        if name in given:
            raise UsageError(f"{name}= is set by compare for each of its runs; leave it out")
    if given.get("optimizer") == "auto":
        raise UsageError(
            "optimizer=auto ignores the learning rate that compare sweeps; accepted: AdamW, SGD, MuSGD ..."
        )


def _with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add what makes a comparison fair: an optimizer whose learning rate is known, and a step for every batch.

    The learning rate is chosen by ultralytics' rule for `optimizer=auto` once the number of classes is known.
    """
    batch = _count(given.get("batch", 16), "batch")
    fair = {"batch": batch, "nbs": batch, "optimizer": "AdamW", "momentum": 0.9, "warmup_bias_lr": 0.0}
    quiet = {"plots": False, "verbose": False, "workers": 0}
    pixels = _count(given.get("imgsz", 640), "imgsz", 32)
    return {**fair, **quiet, **given, "imgsz": pixels}


def counted(number: int, thing: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "epoch"), counted(2, "epoch")
        ('1 epoch', '2 epochs')
    """
    return f"{number} {thing}{'s' * (number != 1)}"


def _count(value: Any, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value} is not accepted; accepted: a whole number from {least}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"int8={value} is not accepted; accepted: True or False")
    return value


def _factors(value: Any) -> tuple[float, ...]:
    factors = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    positive = [type(factor) in (int, float) and 0 < factor < math.inf for factor in factors]
    if not factors or not all(positive) or len(set(factors)) < len(factors):
        raise UsageError(
            f"lr={value} is not accepted; accepted: multiples of the learning rate, such as lr=[1,2,4] or lr=1"
        )
    return tuple(float(factor) for factor in factors)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
