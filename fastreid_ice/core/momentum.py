"""The momentum encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_momentum(momentum_module: nn.Module, online_module: nn.Module, alpha: float = 0.999) -> None:
    """Move every parameter of one module a little towards that of another module, in place.

    theta_m <- alpha * theta_m + (1 - alpha) * theta (He et al., "Momentum Contrast", CVPR 2020, eq. 2; used by ICE and
    DCMIP after every optimiser step). Parameters that need no gradient are averaged too. Buffers are not changed:
    batch-norm statistics of the momentum module come from its own forward passes in training mode.

    Args:
        momentum_module: receives the average.
        online_module: same parameters in the same order; unchanged.
        alpha: weight of the old value, in [0, 1].

    Raises:
        ValueError: if the parameters differ in number or shape, or ``alpha`` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    averages: list[Tensor] = list(momentum_module.parameters())
    parameters: list[Tensor] = list(online_module.parameters())
    if [average.shape for average in averages] != [parameter.shape for parameter in parameters]:
        raise ValueError(
            "momentum_module and online_module must have parameters of the same shapes in the same order; "
            "build both from one config"
        )
    if averages:
        torch._foreach_lerp_(averages, parameters, 1 - alpha)
