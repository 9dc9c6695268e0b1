"""Options that yolorep adds to training, in Python and on both hosts' command lines.

rep: the blocks to expand the model with before training, as under the `rep:` key of a model YAML: the name of a block,
or a mapping. Its other keys (`identity`, `select`, `start`) are options of training too.
equivalent_l2: decay the equivalent kernels of RepVGG blocks instead of the kernel of each branch.
gain_lr: multiply the learning rate of the branches' gains by this number.
scales: a file with the constants of csla's and repopt's 1x1 kernels.
rep_from: train the stock model for this fraction of the epochs, and expand it then.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolorep import model_yaml
from yolorep.blocks.csla import LEARNED
from yolorep.blocks.registry import name_of
from yolorep.errors import UsageError
from yolorep.given_scales import CONSTANT, SCALES, GivenScales
from yolorep.given_scales import OPTION as OF_SCALES
from yolorep.host import Host
from yolorep.hosts.learned_scales import read_scales
from yolorep.late_request import LATE, LateRequest, pending
from yolorep.late_request import OPTION as REP_FROM
from yolorep.policy import OF_MODEL, Policy

OF_REP = tuple(name for name in OF_MODEL if name != "block")
NAMES = ("rep", *OF_REP, REP_FROM, OF_SCALES, model_yaml.EQUIVALENT_L2, model_yaml.GAIN_LR)


@dataclass(frozen=True)
class TrainOptions:
    """policy: None keeps the model's blocks. equivalent_l2, gain_lr: None keeps the model's setting.

    rep_from: the fraction of the epochs after which the model is expanded; None for before the first.
    scales: constants for its 1x1 kernels; None for those of the block.
    """

    policy: Policy | None = None
    equivalent_l2: bool | None = None
    gain_lr: float | None = None
    rep_from: float | None = None
    scales: GivenScales | None = None

    def __bool__(self) -> bool:
        """Return whether any option is given."""
        return self.policy is not None or bool(self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings of the optimizer that are given, by their keys in a model dictionary."""
        given = {model_yaml.EQUIVALENT_L2: self.equivalent_l2, model_yaml.GAIN_LR: self.gain_lr}
        return {key: value for key, value in given.items() if value is not None}

    def recorded(self) -> dict[str, Any]:
        """Return the options as plain values, to be recorded with a run."""
        given = {REP_FROM: self.rep_from, OF_SCALES: None if self.scales is None else self.scales.file}
        more = {key: value for key, value in given.items() if value is not None}
        return {**({} if self.policy is None else _recorded(self.policy)), **more, **self._settings}

    def written(self, d: Mapping[str, Any], host: Host) -> dict[str, Any]:
        """Return the model dictionary with the options written into it.

        Raises:
            UsageError: it requests other rep blocks already, or the same with other constants.
        """
        result = model_yaml.without_earlier(d)
        if self.policy is not None and self.expands(result, host):
            if self.rep_from is None:
                result["rep"] = self.policy.to_yaml()
            else:
                result[LATE] = LateRequest(self.policy, self.rep_from).to_yaml()
        return {**result, **self.constants(), **self._settings}

    def constants(self) -> dict[str, Any]:
        """Return the constants by their key in a model dictionary; empty without."""
        return {} if self.scales is None else {SCALES: self.scales.to_yaml()}

    def expands(self, d: dict[str, Any], host: Host) -> bool:
        """Return whether a model of this dictionary has to be expanded: not if it requests the same blocks already.

        Raises:
            UsageError: it requests other blocks, or the same with other constants.
        """
        known, late = model_yaml.plan(d, host, checked=False), pending(d)
        if self.policy is None:
            return False
        requested = (known.policy, None) if late is None else (late.policy, late.fraction)
        if requested == (self.policy, self.rep_from):
            if self.scales is not None and (known.scales is None or known.scales.layers != self.scales.layers):
                has = "its block's constants" if known.scales is None else f"those of {known.scales.file}"
                raise UsageError(
                    f"the model has rep={self.policy.block} with {has} already, so {OF_SCALES}={self.scales.file} "
                    "cannot be used; leave scales out to train it as it is, or start from the stock model"
                )
            return False
        named = sorted(
            {name for name, options in known.rows.values() if name != model_yaml.FC and options.block != "plain"}
        )
        if requested == (None, None) and not named:
            return True
        key = "rep" if late is None else LATE
        has = f"{', '.join(named)} rows" if requested == (None, None) else f"{key}: {d[key]}"
        raise UsageError(
            f"the model has rep blocks already ({has}), so rep={self.policy.block} cannot be added; "
            "leave rep out to train it as it is, or start from the stock model (yolorep deploy IN OUT)"
        )


def recorded_of(d: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in a model dictionary, as `TrainOptions.recorded` does."""
    late = LateRequest.of(d, checked=False)
    policy, fraction = (None, None) if late is None else (late.policy, late.fraction)
    policy = Policy.from_yaml(d["rep"], checked=False) if d.get("rep") else policy
    settings = (d.get(model_yaml.EQUIVALENT_L2), d.get(model_yaml.GAIN_LR))
    return TrainOptions(policy, *settings, fraction, GivenScales.of(d)).recorded()


def _recorded(policy: Policy) -> dict[str, Any]:
    select = None if policy.select is None else list(policy.select)
    return {"rep": policy.block, "identity": policy.identity, "select": select, "start": policy.start}


def read(given: Mapping[str, Any]) -> TrainOptions:
    """Return the options among `NAMES`, from Python values.

    Raises:
        BlockError: an unknown block, identity or key, or a file of constants that are none.
        UsageError: `identity` or `select` without `rep`, or twice; a block without constants, or no such file.
        CheckpointError, HostError: the file of constants cannot be read.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    rep, extra = asked.get("rep"), {name: asked[name] for name in OF_REP if name in asked}
    more = next((name for name in (*extra, REP_FROM, OF_SCALES) if name in asked), None)
    if rep is None and more is not None:
        raise UsageError(f"{more} says more about rep, which is not given; accepted: rep=BLOCK beside it")
    mapping = {"block": rep} if isinstance(rep, str) else rep
    if extra and isinstance(mapping, Mapping):
        twice = sorted(mapping.keys() & extra.keys())
        if twice:
            raise UsageError(f"{twice[0]} is given twice, in rep and beside it; leave one of them out")
        mapping = {**mapping, **extra}
    policy = None if mapping is None else Policy.from_yaml(mapping)
    if policy is not None and REP_FROM in asked:
        LateRequest.made(policy, asked[REP_FROM])
    return TrainOptions(
        policy,
        model_yaml.flag(asked[model_yaml.EQUIVALENT_L2]) if model_yaml.EQUIVALENT_L2 in asked else None,
        model_yaml.factor(asked[model_yaml.GAIN_LR]) if model_yaml.GAIN_LR in asked else None,
        asked.get(REP_FROM),
        _scales(asked.get(OF_SCALES), policy),
    )


def _scales(given: Any, policy: Policy | None) -> GivenScales | None:
    """Return the constants in the file `scales`.

    Raises:
        YolorepError: it is no file's name, the file cannot be read, or the block has no constants.
    """
    if given is None:
        return None
    block = None if policy is None else name_of(policy.block)
    if block not in CONSTANT or LEARNED in policy.block:  # type: ignore[union-attr]
        raise UsageError(f"{OF_SCALES} is for constants; accepted beside it: rep={' and rep='.join(CONSTANT)}")
    if not isinstance(given, (str, Path)):
        raise UsageError(f"{OF_SCALES}={given} is not accepted; accepted: a checkpoint (.pt), or a YAML or JSON file")
    return read_scales(Path(given))


def from_pairs(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split ultralytics' ARG=VALUE arguments into the host's arguments and yolorep's options, as Python values.

    Raises:
        UsageError: a value is missing, or begins like a YAML list or mapping and is not YAML.
    """
    rest, options = [], {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name.lstrip("-") in NAMES:
            options[name.lstrip("-")] = value_of(name, text if equals else "")
        else:
            rest.append(argument)
    return rest, options


def from_flags(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split the `--name value` arguments of a YOLOv5 script into the script's arguments and yolorep's options.

    Raises:
        UsageError: as `from_pairs`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in NAMES:
        alone = "true" if name == model_yaml.EQUIVALENT_L2 else ""  # a flag, which may have a value
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", const=alone)
    known, rest = parser.parse_known_args(list(arguments))
    return rest, {name: value_of(f"--{name}", text) for name, text in vars(known).items() if text is not None}


def value_of(name: str, text: str) -> Any:
    """Parse a list or a mapping as YAML; else return true, false, a number or the text. name: for messages.

    Raises:
        UsageError: a value is missing, or begins like a YAML list or mapping and is not YAML.
    """
    text = text.strip()
    if not text:
        raise UsageError(f"{name} has no value; accepted: rep=BLOCK, as in rep=repvgg")
    if text[0] in "[{":
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            example = "select='[\"*.cv2\", 6]'"
            raise UsageError(f"{name}={text} is not YAML; quote what begins with a *, as in {example}") from None
    if re.fullmatch(r"\d*\.\d+", text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), int(text) if text.isdecimal() else text)
