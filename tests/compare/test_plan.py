"""`yolorep compare` reads its arguments into a plan, and refuses wrong ones before it trains anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from yolorep.bench.record import write_json
from yolorep.compare.plan import STOCK, SWEEP_SEED, Arm, Plan, Run, read
from yolorep.compare.processes import Slots, device_of
from yolorep.errors import BlockError, UsageError

GIVEN = {"model": "yolov5n.yaml", "data": "data.yaml", "epochs": 10, "batch": 8}


def plan_of(*reps: str, networks: tuple[str, ...] = (), **more: Any) -> Plan:
    return read(list({**GIVEN, **more}.items()), reps, networks)


def test_a_plan_has_stock_first_and_steps_for_every_batch() -> None:
    plan = plan_of("csla", "{block: repvgg, identity: none}", imgsz=192)
    assert [arm.name for arm in plan.arms] == [STOCK, "csla", "repvgg, identity none"]
    assert (plan.seeds, plan.epochs, plan.sweep_epochs, plan.factors) == (3, 10, 5, (1.0, 2.0, 4.0))
    assert (plan.train["nbs"], plan.train["optimizer"], plan.imgsz) == (8, "AdamW", 192)
    assert [arm.name for arm in plan_of().arms] == [STOCK, "repvgg"]


def test_networks_are_candidates_beside_blocks() -> None:
    assert plan_of(networks=("血.yaml", "细胞.yaml")).arms[2].slug == "细胞"
    networks = ("yolov5n-csprepresnet.yaml", "mine/yolov8n.yaml")
    assert [arm.name for arm in plan_of(networks=networks).arms] == [STOCK, "yolov5n-csprepresnet", "yolov8n"]
    assert [arm.name for arm in plan_of("csla", networks=networks[:1]).arms] == [STOCK, "csla", "yolov5n-csprepresnet"]


def test_what_the_user_gives_wins() -> None:
    train = plan_of(nbs=64, optimizer="SGD", lr0=0.1, workers=4).train
    assert (train["nbs"], train["optimizer"], train["lr0"], train["workers"]) == (64, "SGD", 0.1, 4)


@pytest.mark.parametrize(
    ("reps", "more", "says"),
    [
        ((), {"model": ""}, "compare has no model="),
        ((), {"data": None}, "compare has no data="),
        ((), {"seed": 3}, "seed= is set by compare"),
        ((), {"project": "a"}, "project= is set by compare"),
        ((), {"optimizer": "auto"}, "optimizer=auto ignores the learning rate"),
        (("csla", "csla"), {}, "two candidates have one name"),
        ((), {"networks": ("stock.pt",)}, "network=stock.pt is not accepted; accepted: .*, not named stock"),
        ((), {"networks": (".",)}, "network=. is not accepted; accepted: a model YAML or a checkpoint"),
        ((), {"networks": ("a/n.yaml", "b/n.yaml")}, "two candidates have one name"),
        ((), {"seeds": 0}, "seeds=0 is not accepted; accepted: a whole number from 1"),
        ((), {"seeds": True}, "seeds=True is not accepted"),
        ((), {"epochs": 1.5}, "epochs=1.5 is not accepted"),
        ((), {"lr": [1, 1]}, "lr=.* is not accepted; accepted: multiples"),
        ((), {"lr": -1}, "lr=-1 is not accepted"),
        ((), {"lr": None}, "lr=None is not accepted"),
        ((), {"lr": [float("nan")]}, "is not accepted; accepted: multiples"),
        ((), {"lr": "big"}, "lr=big is not accepted"),
        ((), {"int8": 3}, "int8=3 is not accepted"),
        ((), {"imgsz": 31}, "imgsz=31 is not accepted; accepted: a whole number from 32"),
        ((), {"imgsz": "wide"}, "imgsz=wide is not accepted"),
    ],
)
def test_a_wrong_argument_is_refused(reps: tuple[str, ...], more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of(*reps, **more)


def test_a_wrong_candidate_is_refused() -> None:
    with pytest.raises(BlockError, match="unknown option 'placement'"):
        Arm.of("{block: repvgg, placement: neck}")
    with pytest.raises(BlockError, match=r"rep: .*resnet"):
        Arm.of("resnet")


def test_names_of_runs_tell_arm_seed_rate_and_epochs() -> None:
    arm = Arm.of("{block: repvgg, select: ['model.4.*', 6]}")
    assert Run(arm, 2, 4.0, 28).name == "repvgg-select-model.4.-6-seed2-lr4-28"
    assert Run(arm, SWEEP_SEED, 0.5, 5).name == "repvgg-select-model.4.-6-sweep-lr0.5-5"


def test_a_folder_goes_on_with_its_own_plan_only(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan_of().check_continues(file)
    write_json(file, plan_of().record())
    plan_of("repvgg", "csla", seeds=5).check_continues(file)
    with pytest.raises(
        UsageError, match=f"{re.escape(str(tmp_path))} holds a comparison with epochs 10, not 20; accepted: the same"
    ):
        plan_of(epochs=20).check_continues(file)
    with pytest.raises(UsageError, match="holds a comparison with train"):
        plan_of(imgsz=320).check_continues(file)


@pytest.mark.parametrize("content", ["{", "[]", b"\xff\xfe"])
def test_a_damaged_plan_is_refused(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=re.escape(str(file))):
        plan_of().check_continues(file)


def test_a_device_is_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert device_of(None) == device_of("cpu") == "cpu"
    for device in ("xyz", 0, "mps", "", "cuda:0"):
        with pytest.raises(UsageError, match=f"device={device} is not on this machine; accepted: cpu$"):
            device_of(device)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert (device_of(None), device_of([0, 1]), device_of("cuda:1"), device_of("mps")) == ("0", "0,1", "1", "mps")
    with pytest.raises(UsageError, match=r"accepted: cpu, mps, 0, 1$"):
        device_of("2")


def test_slots_of_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolorep.compare.processes.process_cores", lambda: 8)
    monkeypatch.setattr("yolorep.compare.processes.available_cores", lambda: 8)
    assert Slots.of("cpu", None) == Slots(("cpu",) * 4, 2)
    assert Slots.of("cpu", 8).cpu_time
    assert not Slots.of("cpu", 2).cpu_time
    assert Slots.of("0,1", None).devices == ("0", "1")
    with pytest.raises(UsageError, match="jobs=9 is more than the cores of this machine; accepted: 1 to 8"):
        Slots.of("cpu", 9)
    with pytest.raises(UsageError, match="every GPU of device=0,1 trains one run at a time"):
        Slots.of("0,1", 4)
