"""A request to expand a model in the middle of its training, as it is written in a model YAML.

`rep_late: {block: repvgg, from: 0.66}` trains the stock model for 0.66 of the epochs. Until then the run notes `begun:
true`, so that a later run from one of its stock checkpoints does not expand again. Once the model is expanded, the YAML
has a `rep:` too; `rep_late:` stays, so that a resumed run knows where its learning rate started again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolorep.errors import BlockError, UsageError
from yolorep.policy import Policy

LATE, FROM, BEGUN, OPTION = "rep_late", "from", "begun", "rep_from"
KEEPING = (None, "silent", "split")  # starts with which a trained model computes what it did


@dataclass(frozen=True)
class LateRequest:
    """policy: the blocks. fraction: of the epochs, above 0 and below 1, that the stock model is trained for."""

    policy: Policy
    fraction: float

    @classmethod
    def of(cls, d: Mapping[str, Any], *, checked: bool = True) -> LateRequest | None:
        """Return the request in a model dictionary; None if it has none.

        Raises:
            BlockError: a value is not accepted.
        """
        given = d.get(LATE)
        if given is None:
            return None
        if not isinstance(given, dict) or FROM not in given:
            raise BlockError(
                f"{LATE}: {given!r} is not accepted; accepted: a mapping such as {{block: repvgg, from: 0.66}}"
            )
        options = {key: value for key, value in given.items() if key not in (FROM, BEGUN)}
        return cls.made(Policy.from_yaml(options, LATE, checked=checked), given[FROM])

    @classmethod
    def made(cls, policy: Policy, fraction: Any) -> LateRequest:
        """Return the request for these values.

        Raises:
            BlockError: the fraction is none, or the start changes what a trained model computes.
        """
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not number or not 0 < fraction < 1:
            raise BlockError(
                f"{OPTION}={fraction!r} is not accepted; accepted: a number above 0 and below 1, such as 0.66"
            )
        if policy.start not in KEEPING:
            raise BlockError(
                f"start={policy.start} changes what a trained model computes, so {OPTION} does not take it; "
                "accepted: silent, split"
            )
        return cls(policy, float(fraction))

    def to_yaml(self) -> dict[str, Any]:
        """Return the value of the `rep_late:` key."""
        return {**self.policy.to_yaml(), FROM: self.fraction}

    def first_epoch(self, epochs: int) -> int:
        """Return the first epoch, from 0, that trains the branches.

        Raises:
            UsageError: the run is too short to have epochs before and after.

        Example:
            >>> LateRequest(Policy("repvgg"), 0.66).first_epoch(100)
            66
        """
        first = math.ceil(self.fraction * epochs - 1e-6)
        if not 0 < first < epochs:
            raise UsageError(
                f"{OPTION}={self.fraction:g} of {epochs} epochs leaves no epoch for the branches; accepted: more "
                "epochs, or a smaller fraction"
            )
        return first


def begun(d: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model dictionary with a note that a run has begun to meet its request.

    Example:
        >>> begun({"rep_late": {"block": "repvgg", "from": 0.66}})
        {'rep_late': {'block': 'repvgg', 'from': 0.66, 'begun': True}}
    """
    return {**d, LATE: {**d[LATE], BEGUN: True}}


def is_begun(d: Mapping[str, Any]) -> bool:
    """Return whether a model dictionary has a request that a run has begun, and has not met yet."""
    given = d.get(LATE)
    return d.get("rep") is None and isinstance(given, dict) and bool(given.get(BEGUN))


def pending(d: Mapping[str, Any]) -> LateRequest | None:
    """Return the request of a model dictionary whose model is still to be expanded; else None."""
    return None if d.get("rep") is not None else LateRequest.of(d, checked=False)
