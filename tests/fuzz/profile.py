"""How many examples the fuzzers try: few in the usual suite, the same every time; YOLOREP_FUZZ=N tries N, at random."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

from yolorep.errors import YolorepError

MANY = int(os.environ.get("YOLOREP_FUZZ", "0"))


def examples(few: int) -> Any:
    """Settings of one fuzzer, which tries `few` examples in the usual suite."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        deadline=None,
        database=None,
        print_blob=bool(MANY),
        suppress_health_check=list(HealthCheck),
    )


def one_line(error: YolorepError) -> None:
    """Assert that an error is one sentence."""
    assert str(error).strip()
    assert "\n" not in str(error).strip()
