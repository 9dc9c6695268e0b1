"""`yolorep compare`: read the arguments, train the missing runs, print the table and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from yolorep import plugins
from yolorep.bench.record import check_folder, read_json, write_json
from yolorep.compare import costs, findings, report
from yolorep.compare.plan import Plan, read
from yolorep.compare.processes import Slots, device_of
from yolorep.compare.stages import Experiment, Trained
from yolorep.errors import UsageError, YolorepError
from yolorep.hosts import data_downloads
from yolorep.hosts.offline import guard_hosts
from yolorep.hosts.train_options import OF_REP
from yolorep.hosts.ultralytics.command import check_files, in_one_sentence
from yolorep.quantization.schemes import chosen_schemes

PLAN, COSTS = "plan.json", "costs.json"


def run(arguments: Sequence[str], console: Console) -> None:
    """Compare candidates with stock. arguments: ARG=VALUE, as in `compare_help.HELP`.

    Raises:
        UsageError, BlockError: an argument is not accepted; nothing is trained.
        HostError: ultralytics refuses an argument, or a training failed.
    """
    guard_hosts()
    arguments = plugins.from_pairs(arguments)
    out, jobs, plan = _read(arguments)
    data_downloads.allow()
    check_folder(out)
    slots = Slots.of(plan.device, jobs)
    plan.check_continues(out / PLAN)
    with in_one_sentence("compare"):
        _check_host(plan)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, plan.record())

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{report.title(plan)}; {len(slots.devices)} at a time; runs and logs are in {out}")
    say("After a stop, the same command goes on where it was.")
    measured = costs_of(plan, out / COSTS, slots.threads)
    trained = Experiment(plan, out, slots, say).run()
    int8 = quantized(plan, trained, console) if plan.int8 else {}
    found = findings.rows(plan, trained, measured, int8)
    told = findings.sentences(plan, found, trained)
    console.print(report.screen(plan, found))
    for line in told:
        say(line)
    say(f"wrote {' '.join(map(str, report.write(plan, found, told, trained, out)))}")


def _read(arguments: Sequence[str]) -> tuple[Path, int | None, Plan]:
    """Return the folder, the number of runs at a time, and the plan.

    Raises:
        UsageError, BlockError: an argument is not accepted.
    """
    from ultralytics.cfg import smart_value

    reps: list[str] = []
    networks: list[str] = []
    pairs: list[tuple[str, Any]] = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        name = name.lstrip("-")
        if not equals or not text:
            raise UsageError(f"{argument!r} is not accepted; accepted: ARG=VALUE, such as seeds=3")
        if name in OF_REP:
            raise UsageError(
                f"{name}= would mean all candidates; accepted: a mapping, as in rep='{{block: repvgg, {name}: ...}}'"
            )
        if name == "rep":
            reps.append(text)
        elif name == "network":
            networks.append(text)
        else:
            verbatim = name in ("model", "data", "out")
            pairs.append((name, text if verbatim else smart_value(text)))
    given = dict(pairs)
    out, jobs = Path(given.pop("out", "yolorep-compare")), given.pop("jobs", None)
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise UsageError(f"jobs={jobs} is not accepted; accepted: a whole number from 1")
    given["device"] = device_of(given.get("device"))
    return out, jobs, read(list(given.items()), reps, networks)


def _check_host(plan: Plan) -> None:
    """Check model, data, ultralytics' arguments and the packages for 8 bits before anything is trained.

    Raises:
        UsageError: the model is of a task that is not compared, or a package is missing.
        HostError: as `in_one_sentence`.
    """
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    from yolorep.compare.runs import FIGURES
    from yolorep.compare.starts import classes_of

    get_cfg(overrides={**plan.train, "epochs": plan.epochs})
    tasks: dict[str, str] = {}
    for model in (plan.model, *(arm.network for arm in plan.arms if arm.network)):
        check_files("train", [f"model={model}", f"data={plan.data}"])
        yolo = YOLO(model)
        if not isinstance(yolo.model, nn.Module):  # an exported file, or a folder
            raise UsageError(f"{model} cannot be trained; accepted: a model YAML or a checkpoint of ultralytics")
        tasks[model] = yolo.task
    task = tasks[plan.model]
    if task not in FIGURES:
        raise UsageError(f"{plan.model} is of task {task}; accepted: {', '.join(FIGURES)}")
    for model, other in tasks.items():
        if other != task:
            raise UsageError(f"{model} is of task {other}, {plan.model} of task {task}; accepted: one task for all")
    classes_of(plan.data)
    if plan.int8:
        chosen_schemes((), "onnx")


def costs_of(plan: Plan, file: Path, threads: int) -> dict[str, costs.Cost]:
    """Return the costs of the arms; those that an earlier start of the command measured are kept."""
    known = read_json(file) if file.is_file() else {}
    if not {arm.name for arm in plan.arms} <= known.keys():
        known = {name: cost.record() for name, cost in costs.measure(plan, threads).items()}
        write_json(file, known)
    try:
        return {name: costs.Cost(**values) for name, values in known.items()}
    except TypeError:  # other names, or no mapping
        raise UsageError(f"{file} is not a record of costs; accepted: another out=FOLDER") from None


def quantized(plan: Plan, trained: Trained, console: Console) -> dict[str, tuple[float, ...]]:
    """Return the loss in 8 bits of every arm, in points of mAP50-95 for each seed.

    Seeds for which no loss can be measured are left out, and named.
    """
    losses: dict[str, tuple[float, ...]] = {}
    for arm in plan.arms:
        for seed in range(plan.seeds):
            run = trained.runs[arm.name, seed, plan.epochs].name
            try:
                losses[arm.name] = (*losses.get(arm.name, ()), _drop(trained.folder / run, plan, console))
            except YolorepError as error:
                console.print(f"{run}: no loss in 8 bits: {error}", soft_wrap=True, markup=False)
    return losses


def _drop(folder: Path, plan: Plan, console: Console) -> float:
    from yolorep.commands.quantize import Request, quantize_file

    record = folder / "int8.onnx.json"
    if not record.is_file():
        source, out = folder / "train" / "weights" / "last.pt", folder / "int8.onnx"
        quantize_file(Request(source, out, Path(plan.data), imgsz=plan.imgsz, overwrite=True), console)
    report_of = read_json(record)
    return next(float(c["loss_points"]) for c in report_of["candidates"] if c["label"] == report_of["chosen"])
