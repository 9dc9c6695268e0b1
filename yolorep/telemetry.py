"""Keep the usage reports of OpenVINO and NNCF from being sent."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

REPORTER = "openvino_telemetry"


def send_no_telemetry() -> None:
    """Have `openvino` and `nncf` find their reporting package not installed, which both take as "send nothing".

    Call before either is imported. A process that has imported the package already keeps it.
    """
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]


def without_telemetry(name: str) -> Any:
    """Import and return a module of OpenVINO or NNCF that sends no usage reports.

    Raises:
        ImportError: it is not installed.

    Example:
        >>> without_telemetry("sys").modules["openvino_telemetry"]
    """
    send_no_telemetry()
    return import_module(name)
