"""Schemes by name, calibration images of a data set, and the choice that a report makes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolorep.calibration import calibration_files, check_validation, class_names, letterboxed
from yolorep.errors import HostError, UsageError
from yolorep.quantization import schemes
from yolorep.quantization.report import Candidate, QuantizationReport
from yolorep.quantization.schemes import SCHEMES, chosen_schemes


def test_schemes_are_unique_and_taken_by_name() -> None:
    assert [scheme.name for scheme in chosen_schemes(["nncf", "minmax"], "onnx")] == ["nncf", "minmax"]
    assert {scheme.name for scheme in chosen_schemes(["all"], "onnx")} == set(SCHEMES)
    assert all(scheme.tool == "nncf" for scheme in chosen_schemes(["all"], "openvino"))


@pytest.mark.parametrize(
    ("names", "target", "said"),
    [
        (["int4"], "onnx", "scheme 'int4' is unknown; accepted: all, minmax"),
        (["minmax"], "openvino", "scheme 'minmax' writes ONNX only"),
    ],
)
def test_wrong_schemes_get_a_sentence(names: list[str], target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen_schemes(names, target)


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "find_spec", lambda name: None if name in ("nncf", "openvino") else object())
    with pytest.raises(UsageError, match=r"quantize needs openvino, nncf; install: pip install openvino nncf"):
        chosen_schemes([], "openvino")


def test_calibration_files_are_drawn_from_the_training_images_alike_each_time(tiny_dataset: Path) -> None:
    files = calibration_files(tiny_dataset, 5)
    assert len(files) == 5
    assert files == calibration_files(tiny_dataset, 5)
    assert all("train" in file.parts for file in files)
    assert len(calibration_files(tiny_dataset, 10_000)) == 8
    assert len(class_names(tiny_dataset)) == 2


def test_a_list_of_images_is_read(tiny_dataset: Path, tmp_path: Path) -> None:
    files = calibration_files(tiny_dataset, 3)
    (tmp_path / "train.txt").write_text("\n".join(map(str, files)) + "\n\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: train.txt\nnames: [a, b]\n")
    assert calibration_files(tmp_path / "data.yaml", 9) == files


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("train: none\nval: none\nnames: [a]\n", UsageError, "no calibration images in"),
        ("names: [a]\n", UsageError, "has no train: entry"),
        ("val: images\nnames: [a]\n", UsageError, "has no train: entry"),
        ("- a\n", HostError, "is not a data YAML"),
        ("a: [\n", HostError, "is not YAML"),
    ],
)
def test_data_without_images_gets_a_sentence(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(error, match=said):
        calibration_files(tmp_path / "data.yaml", 1)
    with pytest.raises(UsageError, match="does not exist"):
        calibration_files(tmp_path / "absent.yaml", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: images\nnames: [a]\n", "has no val: entry"),
        ("train: images\nval: none\nnames: [a]\n", "no validation images in .*none; accepted: a data set whose val:"),
    ],
)
def test_data_that_cannot_be_validated_with_gets_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        check_validation(tmp_path / "data.yaml")


def test_listed_images_that_do_not_exist_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    files = calibration_files(tiny_dataset, 3)
    (tmp_path / "train.txt").write_text("\n".join([*map(str, files), "absent.png"]))
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: train.txt\nnames: [a, b]\n")
    told: list[str] = []
    assert calibration_files(tmp_path / "data.yaml", 9, told.append) == files
    missing = f"{tmp_path / 'absent.png'}"
    assert told == [f"1 of 4 images of {tmp_path / 'train.txt'} do not exist, such as {missing}"]


def test_letterboxed_images_are_rgb_from_zero_to_one(tmp_path: Path) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 2] = 255  # red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "red.png"), image)
    x = letterboxed(tmp_path / "red.png", 64)
    assert x.shape == (1, 3, 64, 64)
    assert x.dtype == np.float32
    assert x[0, :, 32, 32].tolist() == [1, 0, 0]
    assert x[0, 0, 0, 0] == pytest.approx(114 / 255)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UsageError, match="cannot be read as an image"):
        letterboxed(tmp_path / "text.png", 64)


def report(**losses: float) -> QuantizationReport:
    candidates = [Candidate("float32", {"mAP50-95": 0.5}, 4)]
    candidates += [Candidate(name, {"mAP50-95": 0.5 - loss / 100}, 1) for name, loss in losses.items()]
    return QuantizationReport("mAP50-95", 0.5, candidates)


def test_the_fastest_scheme_within_tolerance_is_chosen() -> None:
    found = report(fast=1.0, slow=0.1, middle=0.4)
    found.seconds = {"float32": 4.0, "fast": 1.0, "slow": 3.0, "middle": 2.0}
    assert found.chosen.scheme == "middle"
    assert [found.within(candidate) for candidate in found.candidates[1:]] == [False, True, True]


def test_fine_tuning_is_chosen_by_accuracy_and_its_float_model_never() -> None:
    found = report(fast=0.4, slow=0.0)
    found.candidates += [
        Candidate("float32", {"mAP50-95": 0.6}, 4, finetuned=2),
        Candidate("fast", {"mAP50-95": 0.5}, 1, finetuned=2),
    ]
    found.seconds = {"float32": 4.0, "fast": 1.0, "slow": 3.0, "float32, fine-tuned": 0.5, "fast, fine-tuned": 1.1}
    assert found.chosen.label == "fast, fine-tuned"
    found.candidates[-1] = Candidate("fast", {"mAP50-95": 0.49}, 1, finetuned=2)
    assert found.chosen.label == "fast"
    assert found.chosen.label in {row["label"] for row in found.record()["candidates"]}


def test_the_most_accurate_scheme_is_chosen_where_none_is_within_tolerance() -> None:
    found = report(fast=2.0, slow=1.0)
    found.seconds = {"float32": 4.0, "fast": 1.0, "slow": 3.0}
    assert found.chosen.scheme == "slow"
    assert not found.within(found.chosen)
    assert found.record()["candidates"][1]["loss_points"] == pytest.approx(2)
