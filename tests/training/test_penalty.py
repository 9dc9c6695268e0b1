from __future__ import annotations

import torch
from torch import nn

from tests.blocks.layers import image
from tests.helpers import randomize_
from yolorep import C3, Conv_C3
from yolorep.blocks import equivalent_l2


def test_penalty_is_the_norm_of_the_scaled_centre_and_of_the_rest() -> None:
    made = randomize_(Conv_C3(4, 6, identity="none")).double()
    expected = torch.zeros((), dtype=torch.float64)
    for o in range(6):
        t3, t1 = (float(bn.weight[o] / (bn.running_var[o] + bn.eps) ** 0.5) for bn in (made.bn, made.branch_1x1.bn))
        for i in range(4):
            k3, k1 = made.conv.weight[o, i].detach(), made.branch_1x1.conv.weight[o, i, 0, 0].detach()
            rest = sum(k3[a, b] ** 2 for a in range(3) for b in range(3) if (a, b) != (1, 1))
            expected += rest + (k3[1, 1] * t3 + k1 * t1) ** 2 / (t3**2 + t1**2)
    torch.testing.assert_close(equivalent_l2(made), expected)


def test_penalty_adds_over_the_blocks_of_a_model_and_has_gradients_for_the_kernels_alone() -> None:
    model = nn.Sequential(Conv_C3(8, 8), C3(8, 8, 2), Conv_C3(8, 8, block="mobileone"))
    parts = [equivalent_l2(model[0]), equivalent_l2(model[1])]
    equivalent_l2(model).backward()
    torch.testing.assert_close(equivalent_l2(model), sum(parts))
    touched = {name.split(".")[-2] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"conv"}


def test_penalty_of_a_pruned_channel_is_finite() -> None:
    made = Conv_C3(4, 4)
    nn.init.zeros_(made.bn.weight)
    nn.init.zeros_(made.branch_1x1.bn.weight)
    equivalent_l2(made).backward()
    assert torch.isfinite(made.conv.weight.grad).all()


def test_penalty_of_what_has_no_such_block_is_zero() -> None:
    deployed = Conv_C3(8, 8).eval()
    deployed._switch_to_deploy()
    assert deployed(image(8)).shape[1] == 8
    assert float(equivalent_l2(deployed)) == float(equivalent_l2(nn.Conv2d(8, 8, 3))) == 0
