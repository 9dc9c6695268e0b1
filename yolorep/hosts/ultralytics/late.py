"""`rep_from` in ultralytics' trainer: expand the model in the middle of a run, and start its learning rate again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from yolorep.atomic_files import written_whole
from yolorep.blocks.registry import block_of
from yolorep.blocks.starts import SPLIT
from yolorep.calibration import MEASURED
from yolorep.errors import UsageError
from yolorep.host import unwrapped
from yolorep.hosts.announcements import announce_training, late_line, logger_of
from yolorep.hosts.late_expansion import carry_state_, expand_both_, restarted
from yolorep.late_request import LATE, OPTION, LateRequest, begun, pending
from yolorep.model_yaml import earlier_line, without_earlier
from yolorep.paths import is_file
from yolorep.stock_layers import rep_blocks

REBUILT = "_optimizer_by_yolorep"  # on a trainer: builds its optimizer again, for the model that it is given
RESTARTED = "_restarted_by_yolorep"  # on a trainer: whether its learning rate has started again
RATE = "lr/pg"  # and its number: the column of a parameter group's rate in the host's `results.csv`
# Arguments of ultralytics that wrap or replace the model or the schedule, with the values that leave them alone.
REFUSED = {"time": (None,), "compile": (None, False), "distill_model": (None,), "quantize": (None, 32, 16)}


def request_of(trainer: Any) -> LateRequest | None:
    """Return the request of the model that is trained, whether it has been met or not; None if there is none."""
    model = getattr(trainer, "model", None)
    yaml = getattr(unwrapped(model), "yaml", None) if isinstance(model, nn.Module) else None
    return LateRequest.of(yaml) if isinstance(yaml, dict) else None


def check(trainer: Any) -> None:
    """Check before the first epoch that the model of a run with `rep_from` can be expanded in the middle.

    Raises:
        UsageError: the run is of several devices, is too short, or has an argument that does not go with it.
    """
    forget_earlier_(trainer)
    request = request_of(trainer)
    if request is None:
        return
    if several_devices(trainer):
        raise UsageError(
            f"{OPTION} expands the model of one process, and this run has several devices; accepted: one device, or "
            "two runs, stock for the first epochs, then rep= from its last.pt for the others"
        )
    for name, accepted in REFUSED.items():
        value = getattr(trainer.args, name, None)
        if value not in accepted:
            raise UsageError(f"{OPTION} does not go with {name}={value}; accepted: a run without {name}")
    request.first_epoch(trainer.epochs)
    for model in _requesting(trainer):
        if pending(model.yaml) is not None:
            model.yaml = begun(model.yaml)


def forget_earlier_(trainer: Any) -> None:
    """Take the request of an earlier run out of the YAML of a model that is trained further, but is not resumed."""
    models = [] if trainer.resume else _requesting(trainer)
    told = earlier_line(models[0].yaml) if models else None
    if told is not None:
        logger_of(models[0]).info(f"yolorep: {told}")
    for model in models:
        model.yaml = without_earlier(model.yaml)


def _requesting(trainer: Any) -> list[Any]:
    """Return the model that is trained and its average, as far as they are built, and have a request."""
    model, average = getattr(trainer, "model", None), getattr(getattr(trainer, "ema", None), "ema", None)
    built: list[Any] = [unwrapped(one) for one in (model, average) if isinstance(one, nn.Module)]
    return [one for one in built if isinstance(getattr(one, "yaml", None), dict) and one.yaml.get(LATE) is not None]


def several_devices(trainer: Any) -> bool:
    """Return whether several processes train together, in the one that starts them too."""
    return "," in str(trainer.args.device or "") or getattr(trainer, "world_size", 1) > 1


def tell(trainer: Any) -> None:
    """Say in the log when the model will be expanded, if it still has to be."""
    request = request_of(trainer)
    if request is not None and pending(unwrapped(trainer.model).yaml) is not None:  # type: ignore[arg-type]
        first = request.first_epoch(trainer.epochs)
        when = f"epoch {first + 1} of {trainer.epochs}"
        logger_of(trainer.model).info(f"yolorep: {request.policy.block} from {when} on; stock until then")


def begin_epoch(trainer: Any) -> None:
    """Before the epoch for which it was requested, or a later one of a resumed run, expand the model and start the
    learning rate again.

    The host steps its schedule after this, so that the epoch trains with the rate of the new schedule.
    """
    request = request_of(trainer)
    first = None if request is None else request.first_epoch(trainer.epochs)
    if request is None or first is None or trainer.epoch < first:
        return
    if not getattr(trainer, RESTARTED, False):
        setattr(trainer, RESTARTED, True)
        trainer.lf = restarted(trainer.lf, first, trainer.epochs)
        added = _expand_(trainer, request) if pending(trainer.model.yaml) is not None else None
        _schedule_(trainer)
        if added is not None:
            _widen(trainer.csv, len(trainer.optimizer.param_groups))
            trainer.stopper.best_epoch = trainer.epoch  # `patience` counts from here
            _save(trainer)
            blocks = len(rep_blocks(trainer.model))
            group = max(trainer.optimizer.param_groups, key=lambda group: len(group["params"]))
            rate = group["initial_lr"]  # of gains, and of Muon's kernels, it is a multiple
            logger_of(trainer.model).info(late_line(trainer.epoch + 1, trainer.epochs, blocks, added, rate))
            announce_training(trainer.model)


def _expand_(trainer: Any, request: LateRequest) -> int:
    """Expand the model and its average in place, and build the optimizer again; return the number of new parameters."""
    policy = request.policy
    start = policy.start or block_of(policy.block).trained_start
    images = list(_images(trainer)) if start == SPLIT else None
    for model in _requesting(trainer):
        model.yaml = {**model.yaml, LATE: request.to_yaml()}  # is met now
    added = expand_both_(trainer.model, trainer.ema.ema, policy, images)
    if hasattr(trainer.ema, "_pairs"):
        trainer.ema._pairs = None  # the tensors of both, which the host lists once
    frozen = _frozen(trainer)
    for name, parameter in trainer.model.named_parameters():
        if any(part in name for part in frozen):
            parameter.requires_grad = False
    before = trainer.optimizer
    trainer.optimizer = getattr(trainer, REBUILT)(trainer.model)
    carry_state_(before, trainer.optimizer)
    return added


def _frozen(trainer: Any) -> list[str]:
    """Return the parts of the names of parameters that the run freezes, which older versions keep to themselves."""
    names = getattr(trainer, "freeze_layer_names", None)
    if names is None:
        given = trainer.args.freeze
        layers = range(given) if isinstance(given, int) else given or []
        names = [*(f"model.{index}." for index in layers), ".dfl"]
    return list(names)


def _schedule_(trainer: Any) -> None:
    """Let the host's scheduler step by the trainer's curve, from the epoch that begins."""
    trainer.scheduler = LambdaLR(trainer.optimizer, lr_lambda=trainer.lf)
    trainer.scheduler.last_epoch = trainer.epoch - 1


def _images(trainer: Any) -> Iterator[Tensor]:
    """Yield batches of training images as the model takes them, and start the loader again."""
    seen = 0
    for batch in trainer.train_loader:
        images = trainer.preprocess_batch(batch)["img"]
        yield images
        seen += len(images)
        if seen >= MEASURED:
            break
    trainer.train_loader.reset()


def _widen(file: Path, groups: int) -> None:
    """Give the table of a run's epochs a column for each parameter group that the expansion has added.

    The host writes the head of the table once; readers refuse rows that are longer. Earlier epochs get a rate of 0.
    """
    if not is_file(file):
        return
    head, *rows = file.read_text(encoding="utf-8").splitlines() or [""]
    new = [f"{RATE}{group}" for group in range(head.count(RATE), groups)]
    if head and new:
        lines = [",".join([head, *new]), *(",".join([row, *["0"] * len(new)]) for row in rows)]
        with written_whole(file) as stream:
            stream.write("\n".join(lines) + "\n")


def _save(trainer: Any) -> None:
    """Write `last.pt` again, of the epoch before: the host recovers from NaN by it, into the model as it is now."""
    if not trainer.args.save:
        return
    if trainer.fitness is None and is_file(trainer.last):  # a run that was resumed at this epoch
        found = dict(torch.load(trainer.last, map_location="cpu", weights_only=False).get("train_metrics") or {})
        trainer.fitness, trainer.metrics = found.pop("fitness", None), found
    epoch, period = trainer.epoch, trainer.save_period
    trainer.epoch, trainer.save_period = epoch - 1, -1
    try:
        trainer.save_model()
    finally:
        trainer.epoch, trainer.save_period = epoch, period
