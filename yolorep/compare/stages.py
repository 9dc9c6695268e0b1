"""The stages of a comparison: choose a learning rate for every arm, train at equal epochs, then for an equal time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from yolorep.compare.plan import EQUAL_TIME, STOCK, SWEEP, SWEEP_SEED, Arm, Plan, Run, counted
from yolorep.compare.processes import Slots, carry_out, missing

Say = Callable[[str], object]


@dataclass(frozen=True)
class Trained:
    """All results of a comparison.

    factors: the chosen multiple of the learning rate, by arm. sweep: score of each multiple, by arm.
    time: seconds of an epoch / seconds of stock's, by arm; the median over the seeds.
    epochs_for_time: epochs that stock is trained for in the time of each candidate.
    """

    folder: Path
    factors: dict[str, float]
    sweep: dict[str, dict[float, float]]
    time: dict[str, float]
    epochs_for_time: dict[str, int]
    runs: dict[tuple[str, int, int], Run]  # by arm, seed and epochs
    results: dict[str, dict[str, Any]]  # by the run's name

    def result(self, arm: str, seed: int, epochs: int) -> dict[str, Any]:
        return self.results[self.runs[arm, seed, epochs].name]

    def images(self, arm: str, seed: int, epochs: int) -> Path:
        """Return the file that tells which predictions of the last weights are right."""
        return self.folder / self.runs[arm, seed, epochs].name / "images.npz"

    def at_the_edge(self) -> list[str]:
        """Return the arms whose best learning rate is the smallest or the largest that was tried."""
        return [
            arm
            for arm, scores in self.sweep.items()
            if len(scores) > 1 and self.factors[arm] in (min(scores), max(scores))
        ]


class Experiment:
    """Carries out a plan in a folder; what the folder holds already is not trained again."""

    def __init__(self, plan: Plan, folder: Path, slots: Slots, say: Say) -> None:
        self.plan, self.folder, self.slots, self.say = plan, folder, slots, say
        self._missing = self._done = 0
        self._began = 0.0
        self._runs: dict[tuple[str, int, int], Run] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def run(self) -> Trained:
        """Train everything that is missing.

        Raises:
            HostError: a training failed.
        """
        plan = self.plan
        factors, sweep = self._sweep()
        seeds = range(plan.seeds)
        self._train([Run(arm, seed, factors[arm.name], plan.epochs) for seed in seeds for arm in plan.arms])
        time = {arm.name: self._time(arm) for arm in plan.arms}
        longer = {arm.name: round(plan.epochs * time[arm.name]) for arm in plan.arms if arm.name != STOCK}
        stock = plan.arms[0]
        base = Run(stock, 0, factors[STOCK], plan.epochs, EQUAL_TIME)
        more = sorted({epochs for epochs in longer.values() if epochs != plan.epochs})
        self._train([replace(base, seed=seed, epochs=epochs) for seed in seeds for epochs in more])
        return Trained(self.folder, factors, sweep, time, longer, self._runs, self._results)

    def _sweep(self) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
        plan = self.plan
        if len(plan.factors) == 1:
            return {arm.name: plan.factors[0] for arm in plan.arms}, {}
        runs = [Run(arm, SWEEP_SEED, factor, plan.sweep_epochs, SWEEP) for arm in plan.arms for factor in plan.factors]
        results = self._carry_out(runs)
        scores: dict[str, dict[float, float]] = {arm.name: {} for arm in plan.arms}
        for run in runs:
            scores[run.arm.name][run.factor] = results[run.name]["mAP50-95"]
        factors = {arm: max(found, key=found.__getitem__) for arm, found in scores.items()}
        self.say("learning rates chosen: " + ", ".join(f"{arm} x{factor:g}" for arm, factor in factors.items()))
        return factors, scores

    def _train(self, runs: list[Run]) -> None:
        self._results |= self._carry_out(runs)
        self._runs |= {(run.arm.name, run.seed, run.epochs): run for run in runs}

    def _carry_out(self, runs: list[Run]) -> dict[str, dict[str, Any]]:
        self._missing, self._done = len(missing(runs, self.folder)), 0
        self._began = perf_counter()
        return carry_out(runs, self.plan, self.folder, self.slots, self._tell)

    def _tell(self, run: Run, result: dict[str, Any]) -> None:
        self._done += 1
        seed = "" if run.seed == SWEEP_SEED else f", seed {run.seed}"
        what = f"{run.stage}: {run.arm.name}{seed}, lr x{run.factor:g}, {counted(run.epochs, 'epoch')}"
        left = (perf_counter() - self._began) / self._done * (self._missing - self._done) / 60
        still = f"; about {left:.0f} min left of this stage" if self._missing > self._done else ""
        self.say(f"{what}: mAP50-95 {result['mAP50-95']:.4f} ({result['seconds_per_epoch']:.1f} s an epoch{still})")

    def _time(self, arm: Arm) -> float:
        epochs = self.plan.epochs
        ratios = [
            self._results[self._runs[arm.name, seed, epochs].name]["seconds_per_epoch"]
            / self._results[self._runs[STOCK, seed, epochs].name]["seconds_per_epoch"]
            for seed in range(self.plan.seeds)
        ]
        return median(ratios)
