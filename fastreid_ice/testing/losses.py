"""Checks of a ``LossTerm`` on random clusters and batches."""

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
    """Checks that losses follow the protocol of ``LossTerm``.

    - The loss is a finite scalar in the precision of the features. Its gradient equals finite differences, and float32
      agrees with float64. ``scale`` multiplies it.
    - It reads exactly the views that it declares. What it declares about cameras and momentum features is true.
    - Clusters and step stay unchanged.
    - Its memory is in buffers that are not saved in checkpoints. Only ``begin_epoch`` and ``after_step`` write to them,
      and they keep no autograd graph.
    - A run resumed between two epochs has the memory of a run that was not interrupted.
    - Loss and gradient are finite with one identity, camera or image in the batch, and with clusters of one image.
    - Several processes that share a batch get the loss, gradient and memory of one process with the whole batch.

    Args:
        losses: classes, or ``functools.partial(cls, key=value)`` to set keywords.
        processes: how many processes are compared with one; 1 skips this check. They start once for all losses, which
            takes seconds.
        exact_gradient: compare the gradient with finite differences; False for a loss that stops gradients by design.

    Raises:
        AssertionError: a check failed.
        InputError: a loss cannot be sent to another process, for example a class defined in a function.
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
    yield "memory changes only in after_step", partial(_check_moves, make)
    yield "views declared are views read", partial(_check_views, make)
    if exact_gradient:
        yield "gradient equals finite differences", partial(_check_gradient, make)
    yield "float32 agrees with float64", partial(_check_precision, make)
    yield "scale multiplies", partial(_check_scale, make)
    yield "each epoch starts fresh", partial(_check_begins_fresh, make)
    yield "resume", partial(_check_resume, make)
    for name, case in degenerate(unknown_cameras=not make_term(make).needs_cameras).items():
        yield f"degenerate batches, {name}", partial(_check_degenerate, make, *case)


def _check_declarations(make: Factory) -> None:
    term = make_term(make)
    views = getattr(term, "views", None)
    require(isinstance(views, frozenset), f"views is {views!r}, not a frozenset of names")
    unknown = sorted(views - set(VIEWS))
    require(not unknown, f"views contains {', '.join(map(repr, unknown))}; choose from {', '.join(VIEWS)}")
    require("online" in views, "views lacks 'online', the only view with a gradient")
    node = getattr(term, "node", None)
    require(isinstance(node, str) and node and node == node.upper(), f"node is {node!r}, not an upper-case name")


def _check_momentum_features(make: Factory) -> None:
    """Clusters may hold momentum features that the loss does not need: another loss does, or they were clustered."""
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
            raise Failed(f"without momentum_features in the clusters, begin_epoch {raised(error)}") from error
        found.append(memory(term))
    change = None if term.needs_momentum_features else first_change(*found)
    require(change is None, f"{change} depends on momentum_features; set needs_momentum_features = True")


def _check_scalar(make: Factory) -> None:
    for dtype in (torch.float32, torch.float64):
        clusters, step = usual(dtype)
        loss, gradient = gradient_of(begun(make, clusters), step).values()
        require(loss.dtype == dtype, f"features of {dtype} give a loss of {loss.dtype}")
        require(loss.isfinite(), f"the loss is {loss.item()}")
        require(gradient.isfinite().all(), "the gradient is not finite")
        require(gradient.any(), "the gradient with respect to the online features is zero")


def _check_gradient(make: Factory) -> None:
    clusters, step = usual()
    term = begun(make, clusters)

    def loss(online: Tensor) -> Tensor:
        return loss_of(term, replace(step, online=online))

    same = torch.autograd.gradcheck(loss, (step.online,), raise_exception=False)
    require(same, "the gradient differs from finite differences; if it is stopped by design, pass exact_gradient=False")


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
        raise Failed(f"it cannot be built from a scale alone ({error})") from error
    clusters, step = usual()
    term = begun(make, clusters)
    losses = loss_of(begun(make, clusters, scale=3 * term.scale), step), 3 * loss_of(term, step)
    require(torch.isclose(*losses, rtol=1e-9, atol=0), "three times the scale is not three times the loss")


@dataclass(frozen=True)
class _WatchedStep(Step):
    """Records which of its attributes are read."""

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
            raise Failed(f"without {', '.join(undeclared)}, not declared in views, it {raised(error)}") from error
        names_read |= watched.names_read
        outcomes.append({"the loss": loss} | memory(term))
    name = first_change(*outcomes)
    require(name is None, f"{name} depends on {' or '.join(undeclared)}, not declared in views")
    unread = sorted(term.views - names_read)
    require(not unread, f"it declares {', '.join(unread)}, which costs a pass at every step, but does not read it")


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
        require(change is None, f"{name} changes {change}, which other losses read")


def _tensors(clusters: Clusters, step: Step) -> dict[str, Tensor]:
    inputs = (clusters, clusters.known, step)
    values = {(type(one).__name__, field.name): getattr(one, field.name) for one in inputs for field in fields(one)}
    return {".".join(name): value for name, value in values.items() if isinstance(value, Tensor)}


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
        require(not plain, f"{name} keeps the tensor {', '.join(plain)} outside buffers; use self.remember")
        if name == "begin_epoch":
            change = first_change(saved, term.state_dict())
            require(change is None, f"begin_epoch puts {change} into checkpoints; use self.remember")
    attached = [name for name, buffer in term.named_buffers() if buffer.requires_grad]
    require(not attached, f"the buffer {', '.join(attached)} keeps the graph of a step; detach it in after_step")


def _plain_tensors(module: torch.nn.Module) -> list[str]:
    """Attributes of a module, also nested ones, with tensors that do not move with it."""
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


def _check_begins_fresh(make: Factory) -> None:
    clusters, step = usual()
    term = begun(make, clusters)
    saved = {f"the buffer {name}" for name in term.state_dict()}  # may outlive an epoch
    before = memory(term)
    loss_of(term, step).backward()
    move(term, step)
    begin(term, clusters)
    after = {name: value for name, value in memory(term).items() if name not in saved}
    change = first_change({name: value for name, value in before.items() if name not in saved}, after)
    require(change is None, f"begin_epoch with the same clusters, after a step, leaves another memory: {change}")


def _check_resume(make: Factory) -> None:
    """Resumes from the checkpoint of one epoch into an epoch with fewer clusters."""
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
    require(change is None, f"after a resume, {change} differs from that of an uninterrupted run")


def _check_degenerate(make: Factory, clusters: Clusters, step: Step) -> None:
    term = begun(make, clusters)
    for when in ("", " after a step"):
        loss, gradient = gradient_of(term, step).values()
        require(loss.isfinite(), f"the loss{when} is {loss.item()}")
        require(gradient.isfinite().all(), f"the gradient{when} is not finite")
        move(term, step)


def _train(make: Factory) -> dict[str, Tensor]:
    """Two steps of an epoch. Each of several processes has its part of the batch and its own random generators."""
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
        # The gradient of a part is that of the whole loss times the number of processes, since
        # DistributedDataParallel takes the mean.
        gradient = gather_batch(online.grad) / comm.get_world_size()
        values = {"the loss": loss.detach(), "the gradient": gradient, **memory(term)}
        found |= {f"{name} of step {number}": value for name, value in values.items()}
    return found
