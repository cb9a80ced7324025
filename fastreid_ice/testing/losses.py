"""Checks of losses: a ``LossTerm`` of one's own, on clusters and batches drawn here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from ..core import Clusters
from ..losses import LossTerm, Step
from ..modeling.gather import gather_batch
from .checks import Check, Failed, raised, require, run_checks
from .processes import check_in_processes
from .steps import (
    VIEWS,
    Factory,
    begin,
    begun,
    clusters_of,
    degenerate,
    draw_clusters,
    draw_step,
    first_change,
    gradient_of,
    images_of,
    loss_of,
    make_term,
    memory,
    move,
    usual,
)


def check_loss(*losses: Factory, processes: int = 2, exact_gradient: bool = True) -> None:
    """Checks that losses keep the protocol of ``LossTerm``.

    - The loss is a finite scalar in the precision of the features, its gradient is that of finite differences, and
      float32 agrees with float64. ``scale`` multiplies it.
    - It reads the views that it declares and no others, and what it declares of cameras and momentum features holds.
    - It leaves clusters and step as they are.
    - What it remembers lies in buffers outside of checkpoints, which only ``begin_epoch`` and ``after_step`` write, and
      which hold on to no step's graph.
    - A run that is resumed at an epoch has the memory of one that was not interrupted.
    - Loss and gradient are finite with one identity, camera or image in the batch, and with clusters of one image.
    - Processes that share a batch have the loss, gradient and memory of one process with the whole batch.

    Args:
        losses: classes, or ``functools.partial(cls, key=value)`` for keywords other than the default.
        processes: how many are compared with one; 1 leaves that out. They start once for all losses, which takes
            seconds.
        exact_gradient: compare with finite differences; False for a loss that stops a gradient by design.

    Raises:
        AssertionError: the first check that fails.
        InputError: a loss that cannot be sent to another process, such as one that is defined within a function.
    """
    for make in losses:
        run_checks(make, _checks(make, exact_gradient))
    check_in_processes(losses, _train, processes)


def _checks(make: Factory, exact_gradient: bool) -> Iterator[Check]:
    yield "declarations", partial(_check_declarations, make)
    yield "momentum features", partial(_check_momentum_features, make)
    yield "a scalar with a gradient", partial(_check_scalar, make)
    yield "inputs unchanged", partial(_check_inputs, make)
    yield "memory in buffers", partial(_check_buffers, make)
    yield "memory moves in after_step alone", partial(_check_moves, make)
    yield "views declared are views read", partial(_check_views, make)
    if exact_gradient:
        yield "gradient of finite differences", partial(_check_gradient, make)
    yield "float32 agrees with float64", partial(_check_precision, make)
    yield "scale multiplies", partial(_check_scale, make)
    yield "an epoch begins anew", partial(_check_begins_anew, make)
    yield "resume", partial(_check_resume, make)
    for name, case in degenerate(unknown_cameras=not make_term(make).needs_cameras).items():
        yield f"degenerate batches, {name}", partial(_check_degenerate, make, *case)


def _check_declarations(make: Factory) -> None:
    term = make_term(make)
    views = getattr(term, "views", None)
    require(isinstance(views, frozenset), f"views is {views!r}, not a frozenset of names")
    unknown = sorted(views - set(VIEWS))
    require(not unknown, f"views holds {', '.join(map(repr, unknown))}, which is none of {', '.join(VIEWS)}")
    require("online" in views, "views lacks 'online', which alone carries a gradient")
    node = getattr(term, "node", None)
    require(isinstance(node, str) and node and node == node.upper(), f"node is {node!r}, not a name in capitals")


def _check_momentum_features(make: Factory) -> None:
    """Those of all images may be there or not: for another loss, or since they are what was clustered."""
    clusters, _ = usual()
    present = clusters_of(clusters.labels, clusters.cameras, seed=9).features
    found = []
    for momentum_features in (present, None):
        term = make_term(make)
        try:
            begin(term, replace(clusters, momentum_features=momentum_features))
        except Exception as error:
            if momentum_features is present:
                raise
            raise Failed(f"where clusters hold no momentum_features, begin_epoch {raised(error)}") from error
        found.append(memory(term))
    change = None if term.needs_momentum_features else first_change(*found)
    require(change is None, f"{change} depends on momentum_features; declare needs_momentum_features = True")


def _check_scalar(make: Factory) -> None:
    for dtype in (torch.float32, torch.float64):
        clusters, step = usual(dtype)
        loss, gradient = gradient_of(begun(make, clusters), step).values()
        require(loss.dtype == dtype, f"features of {dtype} give a loss of {loss.dtype}")
        require(loss.isfinite(), f"the loss is {loss.item()}")
        require(gradient.isfinite().all(), "the gradient is not finite")
        require(gradient.any(), "the gradient by the online features is zero")


def _check_gradient(make: Factory) -> None:
    clusters, step = usual()
    term = begun(make, clusters)

    def loss(online: Tensor) -> Tensor:
        return loss_of(term, replace(step, online=online))

    same = torch.autograd.gradcheck(loss, (step.online,), raise_exception=False)
    require(same, "the gradient is another; if it is stopped by design, pass exact_gradient=False")


def _check_precision(make: Factory) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        clusters, step = usual(dtype)
        term = begun(make, clusters)
        values = gradient_of(term, step)
        move(term, step)
        found.append(values | memory(term))
    name = first_change(*found, tolerance=1e-3)
    require(name is None, f"{name} differs by more than a thousandth")


def _check_scale(make: Factory) -> None:
    try:
        inspect.signature(make).bind(scale=1.0)
    except TypeError as error:
        raise Failed(f"__init__ takes no scale alone ({error})") from error
    clusters, step = usual()
    term = begun(make, clusters)
    losses = loss_of(begun(make, clusters, scale=3 * term.scale), step), 3 * loss_of(term, step)
    require(torch.isclose(*losses, rtol=1e-9, atol=0), "three times the scale is not three times the loss")


@dataclass(frozen=True)
class _WatchedStep(Step):
    """Knows which of its attributes were read."""

    def __getattribute__(self, name: str) -> Any:
        attributes = object.__getattribute__(self, "__dict__")
        attributes.setdefault("names_read", set()).add(name)
        return object.__getattribute__(self, name)


def _check_views(make: Factory) -> None:
    clusters, step = usual()
    other = draw_step(clusters, step.indices, seed=2)
    undeclared = sorted(set(VIEWS) - make_term(make).views)
    outcomes, names_read = [], set()
    for values in ({view: getattr(other, view) for view in undeclared}, dict.fromkeys(undeclared)):
        term = begun(make, clusters)
        watched = _WatchedStep(**(vars(step) | values))
        try:
            loss = loss_of(term, watched)
            move(term, watched)
        except Exception as error:
            if None not in values.values():
                raise
            raise Failed(f"without {', '.join(undeclared)}, which it does not declare, it {raised(error)}") from error
        names_read |= watched.names_read
        outcomes.append({"the loss": loss} | memory(term))
    name = first_change(*outcomes)
    require(name is None, f"{name} depends on what it does not declare, {' or '.join(undeclared)}")
    unread = sorted(term.views - names_read)
    require(not unread, f"it declares {', '.join(unread)}, computed for it at every step, and does not read it")


def _check_inputs(make: Factory) -> None:
    clusters, step = usual()
    term = make_term(make)
    if term.needs_momentum_features:
        clusters = replace(clusters, momentum_features=clusters.features.clone())
    before = {name: value.detach().clone() for name, value in _tensors(clusters, step).items()}
    for name, call in (
        ("begin_epoch", lambda: begin(term, clusters)),
        ("forward", lambda: loss_of(term, step).backward()),
        ("after_step", lambda: move(term, step)),
    ):
        call()
        change = first_change(before, _tensors(clusters, step))
        require(change is None, f"{name} changes {change}, which others read")


def _tensors(*inputs: Clusters | Step) -> dict[str, Tensor]:
    values = {(type(one).__name__, field.name): getattr(one, field.name) for one in inputs for field in fields(one)}
    return {".".join(name): value for name, value in values.items() if value is not None}


def _check_buffers(make: Factory) -> None:
    clusters, step = usual()
    term = make_term(make)
    saved = {name: value.clone() for name, value in term.state_dict().items()}
    for name, call in (
        ("begin_epoch", lambda: begin(term, clusters)),
        ("forward", lambda: loss_of(term, step)),
        ("after_step", lambda: move(term, step)),
    ):
        call()
        plain = [path for module in term.modules() for path in _plain_tensors(module)]
        require(not plain, f"{name} keeps the tensor {', '.join(plain)} outside of buffers; call self.remember instead")
        if name == "begin_epoch":
            change = first_change(saved, term.state_dict())
            require(change is None, f"begin_epoch writes {change} into checkpoints; call self.remember instead")
    attached = [name for name, buffer in term.named_buffers() if buffer.requires_grad]
    require(not attached, f"the buffer {', '.join(attached)} holds on to the graph of a step; detach it in after_step")


def _plain_tensors(module: torch.nn.Module) -> list[str]:
    """Where a module holds tensors that do not move with it, in its attributes or in what lies in these."""
    own = ("_parameters", "_buffers", "_modules")
    return [path for name, value in vars(module).items() if name not in own for path in _tensors_in(value, name)]


def _tensors_in(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield from _tensors_in(item, f"{path}[{key!r}]")


def _check_moves(make: Factory) -> None:
    clusters, step = usual()
    term = begun(make, clusters)
    before = memory(term)
    loss_of(term, step)
    change = first_change(before, memory(term))
    require(change is None, f"forward changes {change}; change it in after_step")
    loss_of(term, step).backward()
    change = first_change(before, memory(term))
    require(change is None, f"backward changes {change}; change it in after_step")


def _check_begins_anew(make: Factory) -> None:
    clusters, step = usual()
    term = begun(make, clusters)
    saved = {f"the buffer {name}" for name in term.state_dict()}  # may last longer than an epoch
    before = memory(term)
    loss_of(term, step).backward()
    move(term, step)
    begin(term, clusters)
    after = {name: value for name, value in memory(term).items() if name not in saved}
    change = first_change({name: value for name, value in before.items() if name not in saved}, after)
    require(change is None, f"the same clusters, begun again after a step, give another memory: {change}")


def _check_resume(make: Factory) -> None:
    """From the checkpoint after an epoch, in a process of its own, into an epoch of fewer clusters."""
    clusters, step = usual()
    first = begun(make, clusters)
    loss_of(first, step).backward()
    move(first, step)
    resumed = make_term(make)
    resumed.load_state_dict(first.state_dict())
    later = draw_clusters(num_clusters=4, seed=6)
    next_step = draw_step(later, images_of(later, 4, 2), seed=7)
    outcomes = []
    for term in (first, resumed):
        begin(term, later)
        found = memory(term) | {"the loss": loss_of(term, next_step)}
        move(term, next_step)
        outcomes.append(found | {f"{name} after a step": value for name, value in memory(term).items()})
    change = first_change(*outcomes)
    require(change is None, f"in the epoch after a checkpoint {change} is not that of a run that went on")


def _check_degenerate(make: Factory, clusters: Clusters, step: Step) -> None:
    term = begun(make, clusters)
    for when in ("", " after a step"):
        loss, gradient = gradient_of(term, step).values()
        require(loss.isfinite(), f"the loss{when} is {loss.item()}")
        require(gradient.isfinite().all(), f"the gradient{when} is not finite")
        move(term, step)


def _train(make: Factory) -> dict[str, Tensor]:
    """Two steps of an epoch; of several processes each has a part of the batch, and generators of its own."""
    clusters = draw_clusters()
    term: LossTerm = make()
    begin(term, clusters, seed=3 + comm.get_rank())
    found = {}
    for number in (1, 2):
        whole = draw_step(clusters, images_of(clusters, 3, 4), seed=number)
        parts = {
            name: value.detach().chunk(comm.get_world_size())[comm.get_rank()] for name, value in vars(whole).items()
        }
        online = parts["online"].clone().requires_grad_()
        step = Step(**{name: gather_batch(value) for name, value in (parts | {"online": online}).items()})
        seed_all_rng(5 + comm.get_rank())
        loss = term(step)
        loss.backward()
        with torch.no_grad():
            term.after_step(step)
        # Each process has the gradient of its part, times their number, as DistributedDataParallel takes the mean.
        gradient = gather_batch(online.grad) / comm.get_world_size()
        values = {"the loss": loss.detach(), "the gradient": gradient, **memory(term)}
        found |= {f"{name} of step {number}": value for name, value in values.items()}
    return found
