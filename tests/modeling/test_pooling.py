"""Global average pooling: torch's values and gradients, in the memory format of the input."""

from __future__ import annotations

import pytest
import torch
from fastreid.layers.pooling import GlobalAvgPool
from torch import nn

from fastreid_ice.modeling.pooling import GlobalAverage, keep_memory_format


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    inputs = torch.randn(3, 16, 7, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    inputs = inputs.contiguous(memory_format=memory_format)
    results = []
    for pool in (nn.AdaptiveAvgPool2d(1), GlobalAverage(1)):
        given = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = pool(given)
        (pooled * torch.arange(16, dtype=dtype)[:, None, None]).sum().backward()
        results.append((pooled, given.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert results[1][1].is_contiguous(memory_format=memory_format)


def test_gradients_within_autocast() -> None:
    """A float32 input keeps a float32 gradient."""
    inputs = torch.randn(2, 4, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        GlobalAverage(1)(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, torch.full_like(inputs, 1 / 9))


def test_which_modules_change() -> None:
    """Those that pool globally as torch does, subclasses without a forward of their own included."""

    class Own(nn.AdaptiveAvgPool2d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    network = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), GlobalAvgPool(), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(2), Own(1)
    )
    keep_memory_format(network)
    assert [type(module) for module in network] == [*[GlobalAverage] * 3, nn.AdaptiveAvgPool2d, Own]
