"""The error family: one base, and paths that grow from the inside out."""

from __future__ import annotations

import pickle

import pytest

from yolorep import errors
from yolorep.errors import FoldError, YolorepError


def family() -> list[type]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]


@pytest.mark.parametrize("error", family(), ids=lambda e: e.__name__)
def test_errors_share_one_base(error: type) -> None:
    assert issubclass(error, YolorepError)
    assert str(error("what is wrong")) == "what is wrong"


def test_fold_error_says_where() -> None:
    error = FoldError("not linear").within("act").within("cv1").within("model.3")
    assert (error.path, error.reason) == ("model.3.cv1.act", "not linear")
    assert str(error) == "model.3.cv1.act: not linear"


def test_fold_error_survives_pickling() -> None:
    """As it must to come back from a worker process."""
    error = FoldError("not linear", "model.3")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.reason) == (str(error), error.path, error.reason)
