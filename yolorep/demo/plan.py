"""How much the demo trains: epochs and images that fit the time, from the measured time of a step."""

from __future__ import annotations

from dataclasses import dataclass

from yolorep.demo.training import BATCH

VALIDATION = 8  # training images per validation image
LEAST_VALIDATION = 4
# Cost of validating an image / cost of training with it, and a margin for data loading and optimizer.
VALIDATION_COST, OVERHEAD = 0.5, 1.1
# Cost of deploy, timing and proof, and of comparing two checkpoints on an image, in training steps of both models.
FIXED_STEPS, COMPARISON = 8, 0.2
FIXED_SECONDS = 14.0  # painting, pictures and start of the trainers
# Fewer than the smallest plan's 144 steps learn nothing that could be shown; a slow machine gets them all the same.
EPOCHS = (8, 16)
IMAGES = (288, 800)
SHORTEST = (1, 80)  # epochs and images


@dataclass(frozen=True)
class Plan:
    """epochs, images: of each training. val: validation images. seconds: estimate for everything."""

    epochs: int
    images: int
    val: int
    seconds: float

    @property
    def amount(self) -> str:
        """Return epochs and images as they are printed."""
        return f"{self.epochs} epoch{'s' * (self.epochs != 1)} on {self.images} images"

    @property
    def steps(self) -> int:
        """Return the number of training steps of one model."""
        return self.epochs * -(-self.images // BATCH)


def estimate(epochs: int, images: int, pair_seconds: float) -> Plan:
    """Return the plan for given epochs and images. pair_seconds: one step of rep and one of stock."""
    val = max(images // VALIDATION, LEAST_VALIDATION)
    training = epochs * (images + val * VALIDATION_COST) / BATCH * OVERHEAD
    steps = training + FIXED_STEPS + val * COMPARISON
    return Plan(epochs, images, val, pair_seconds * steps + FIXED_SECONDS)


def fit(pair_seconds: float, budget: float, *, epochs: int | None = None, images: int | None = None) -> Plan:
    """Return the plan with the most steps within `budget` seconds, or the smallest plan if none fits.

    pair_seconds: one training step of rep and one of stock, together. epochs, images: fixed by the user, or None.

    Example:
        >>> fit(0.5, 210).seconds <= 210
        True
    """
    choices = [
        estimate(e, i, pair_seconds)
        for e in ([epochs] if epochs else range(EPOCHS[0], EPOCHS[1] + 1))
        for i in ([images] if images else range(IMAGES[0], IMAGES[1] + 1, BATCH))
    ]
    fitting = [plan for plan in choices if plan.seconds <= budget]
    if not fitting:
        return min(choices, key=lambda plan: plan.seconds)
    # Among plans of about the same length, images and epochs in the proportion that learned best: about 50 to 1.
    return max(fitting, key=lambda plan: (plan.steps // 8, -abs(plan.images - 50 * plan.epochs)))


def shorter(plan: Plan, pair_seconds: float, budget: float) -> Plan | None:
    """Return a plan to name to a user whose machine needs more than `budget` for `plan`; None if `plan` fits.

    It learns too little to show a detection, but runs every step of the demo.

    Example:
        >>> slow = fit(5.0, 210)
        >>> shorter(slow, 5.0, 210).amount
        '1 epoch on 80 images'
    """
    return None if plan.seconds <= budget else estimate(*SHORTEST, pair_seconds)
