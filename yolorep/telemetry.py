"""Keep the usage reports of OpenVINO and NNCF from being sent."""

from __future__ import annotations

import sys

REPORTER = "openvino_telemetry"


def send_no_telemetry() -> None:
    """Have `openvino` and `nncf` find their reporting package not installed, which both take as "send nothing".

    Call before either is imported. A process that has imported the package already keeps it.
    """
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]
