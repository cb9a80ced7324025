"""The momentum update against the stored parameters of the reference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastreid_ice.core import update_momentum
from golden import load_golden


class Parameters(nn.Module):
    """A module with parameters of given shapes and one buffer."""

    def __init__(self, shapes, dtype=torch.float32):
        super().__init__()
        self.values = nn.ParameterList(torch.zeros(shape, dtype=dtype) for shape in shapes)
        self.register_buffer("statistics", torch.zeros(3))


@pytest.mark.parametrize("suffix", ["", "_f64"])
@pytest.mark.parametrize("name", ["ice_1step", "ice_steps", "dcmip_steps"])
def test_equals_the_reference(name, suffix):
    golden = {key: torch.as_tensor(value) for key, value in load_golden(f"ema_{name}").items()}
    online, average = golden["online" + suffix], golden["ema" + suffix]
    shapes = [[int(n) for n in shape if n] for shape in golden["param_shapes"]]
    student, teacher = Parameters(shapes, online.dtype), Parameters(shapes, online.dtype)
    nn.utils.vector_to_parameters(average[0], teacher.parameters())
    for step, values in enumerate(online):
        nn.utils.vector_to_parameters(values, student.parameters())
        update_momentum(teacher, student, float(golden["alpha"]))
        found = nn.utils.parameters_to_vector(teacher.parameters()).detach()
        torch.testing.assert_close(found, average[step + 1], rtol=0, atol=1e-12 if suffix else 1e-6)


def test_frozen_parameters_move_and_buffers_and_the_online_module_do_not():
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1
    student[1].bias.requires_grad_(False)
    student(torch.randn(8, 3))
    before = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    update_momentum(teacher, student, 0.75)
    for name, value in teacher.state_dict().items():
        moved = name.endswith(("weight", "bias"))
        torch.testing.assert_close(value, before[1][name] + 0.25 if moved else before[1][name])
        torch.testing.assert_close(student.state_dict()[name], before[0][name], rtol=0, atol=0)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.0), (0.0, 1.0)])
def test_extremes(alpha, expected):
    student, teacher = Parameters([[2, 2]]), Parameters([[2, 2]])
    nn.init.ones_(student.values[0])
    update_momentum(teacher, student, alpha)
    torch.testing.assert_close(teacher.values[0].detach(), torch.full((2, 2), expected))


def test_modules_without_parameters():
    update_momentum(nn.ReLU(), nn.ReLU())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="momentum_module and online_module must have parameters of the same shapes"):
        update_momentum(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="momentum_module and online_module must have parameters of the same shapes"):
        update_momentum(nn.Linear(2, 3), nn.Linear(2, 3, bias=False))
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        update_momentum(nn.Linear(2, 3), nn.Linear(2, 3), 1.5)
