"""Optimizer, trainers, hooks and writers."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import fastreid.engine.defaults
import fastreid.engine.hooks as hooks
import fastreid.engine.train_loop as train_loop
import fastreid.solver.build
import fastreid.utils.checkpoint as checkpoint
import fastreid.utils.events as events
import torch
from fastreid.utils import comm
from torch import nn

from ._registry import patch, replace

logger = logging.getLogger("fastreid.compat")

_build_optimizer = fastreid.solver.build.build_optimizer
_optimizer_params = fastreid.solver.build.get_default_optimizer_params
_build_lr_scheduler = fastreid.solver.build.build_lr_scheduler
_train = train_loop.TrainerBase.train
_print_metrics = events.CommonMetricPrinter.write
_write_tensorboard = events.TensorboardXWriter.write
_eval_hook = hooks.EvalHook.__init__
_checkpointer = hooks.PeriodicCheckpointer.__init__
_before_checkpoints = hooks.PeriodicCheckpointer.before_train
_close_writers = hooks.PeriodicWriter.after_train


@patch
def plain_parameters() -> None:
    """Nothing trains: zero_grad of torch >= 2.0 drops the gradient buffer of ContiguousParams, and step() then skips
    every parameter, without an error.

    Uses plain parameters, in one group for each (learning rate, weight decay, freeze status). With a group for each
    parameter, as get_default_optimizer_params makes them, the optimizer could not update them jointly. Until fastreid
    drops ContiguousParams.
    """
    if inspect.signature(torch.optim.Optimizer.zero_grad).parameters["set_to_none"].default:
        replace(_build_optimizer, build_optimizer)
        replace(_optimizer_params, get_default_optimizer_params)


@patch
def amp_trainer() -> None:
    """SOLVER.AMP.ENABLED ends in an AssertionError without CUDA; with CUDA, AMPTrainer calls torch.cuda.amp, which
    torch >= 2.4 deprecates.

    The device of the model decides: bfloat16 if it has it, else float16 on a GPU and full precision on a CPU.
    Until AMPTrainer uses torch.amp and does the same.
    """
    train_loop.AMPTrainer.__init__ = _init_amp_trainer
    train_loop.AMPTrainer.run_step = _run_amp_step


@patch
def zero_periods() -> None:
    """EVAL_PERIOD 0 and CHECKPOINT_PERIOD 0 divide by zero. Here they mean: only after the last epoch.

    Until the hooks check for zero.
    """
    hooks.EvalHook.__init__ = _init_eval_hook
    hooks.PeriodicCheckpointer.__init__ = _init_checkpointer


@patch
def best_metric() -> None:
    """A resumed run starts with a best metric of -1, so that its first evaluation overwrites a better model_best.pth.

    Until the checkpointer's state is saved.
    """
    hooks.PeriodicCheckpointer.before_train = _recall_best_metric


@patch
def weights_only() -> None:
    """With torch < 2.6, reading a checkpoint such as MODEL.WEIGHTS runs code that is in it.

    Until Checkpointer asks torch.load for weights only.
    """
    checkpoint.Checkpointer._load_file = _load_weights


@patch
def no_test_set() -> None:
    """DATASETS.TESTS () ends in an IndexError before training, since there is no metric that finds the best epoch.

    Until PeriodicCheckpointer does without one.
    """
    before_train = hooks.PeriodicCheckpointer.before_train

    def before_train_without_tests(self: Any) -> None:
        if self.trainer.cfg.DATASETS.TESTS:
            before_train(self)
        else:
            self.max_epoch, self.metric_name = self.trainer.max_epoch, "metric"

    hooks.PeriodicCheckpointer.before_train = before_train_without_tests


@patch
def trainer_epoch() -> None:
    """A run resumed after its last epoch, MAX_EPOCH 0, and any error in before_train end in ``no attribute 'epoch'``,
    which hides the cause.

    Until TrainerBase.train sets ``epoch`` before the loop.
    """
    train_loop.TrainerBase.train = _train_with_epoch


@patch
def finished_run() -> None:
    """Training without an evaluation (EVAL_PERIOD < 0, or nothing left to train) ends in the AssertionError ``No
    evaluation results obtained``, after hours.

    A run with nothing left to train evaluates. Until DefaultTrainer.train returns None in these cases.
    """
    fastreid.engine.defaults.DefaultTrainer.train = _default_train


@patch
def iterations_per_epoch() -> None:
    """Fewer images than SOLVER.IMS_PER_BATCH: ZeroDivisionError in build_lr_scheduler. Until it reports that."""
    replace(_build_lr_scheduler, build_lr_scheduler)


@patch
def metric_printer() -> None:
    """CommonMetricPrinter divides by zero when it is called twice at one of the first iterations, as in an epoch of
    one or two iterations.

    Until it checks for that.
    """
    events.CommonMetricPrinter.write = _print_once


@patch
def last_metrics() -> None:
    """metrics.json and TensorBoard lose the final evaluation: a scalar is dropped if any other was written at its
    iteration, and after_train closes the writers without writing.

    Until the writers remember the last iteration of each scalar, and PeriodicWriter writes before it closes.
    """
    events.JSONWriter.write = _write_json
    events.TensorboardXWriter.write = _write_board
    hooks.PeriodicWriter.after_train = _write_and_close


def build_optimizer(cfg: Any, model: nn.Module, contiguous: bool = False) -> tuple[torch.optim.Optimizer, Any]:
    """fastreid's ``build_optimizer`` without contiguous parameters, for any ``contiguous``."""
    return _build_optimizer(cfg, model, contiguous=False)


def get_default_optimizer_params(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """fastreid's parameter groups, merged if their settings are equal."""
    groups: dict[tuple, dict[str, Any]] = {}
    for group in _optimizer_params(*args, **kwargs):
        parameters = group.pop("params")
        groups.setdefault(tuple(sorted(group.items())), {"params": [], **group})["params"].extend(parameters)
    return list(groups.values())


def build_lr_scheduler(cfg: Any, optimizer: torch.optim.Optimizer, iters_per_epoch: int) -> dict[str, Any]:
    """fastreid's ``build_lr_scheduler``.

    Raises:
        ValueError: an epoch has no iteration.
    """
    if iters_per_epoch < 1:
        raise ValueError(
            f"the training set has fewer images than one batch: SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; "
            "lower it"
        )
    return _build_lr_scheduler(cfg, optimizer, iters_per_epoch)


def _init_amp_trainer(
    self: Any, model: nn.Module, data_loader: Any, optimizer: Any, param_wrapper: Any, grad_scaler: Any = None
) -> None:
    train_loop.SimpleTrainer.__init__(self, model, data_loader, optimizer, param_wrapper)
    device = next(model.parameters()).device
    self.amp_device, self.amp_type = device.type, mixed_precision(device)
    # Small gradients vanish in float16 only: bfloat16 has the range of float32.
    scales = self.amp_type == torch.float16
    self.grad_scaler = grad_scaler or torch.amp.GradScaler(device.type, enabled=scales)
    if self.amp_type is None:
        logger.info("SOLVER.AMP.ENABLED has no effect on this CPU, which has no bfloat16: training in full precision")
    else:
        logger.info("SOLVER.AMP.ENABLED: training in mixed precision with %s", self.amp_type)


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The type for autocast on ``device``, None if it gains nothing."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # What an older torch cannot report counts as missing.
    probes = (getattr(torch.cpu, name, bool) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if device.type == "cpu" and any(probe() for probe in probes) else None


def _run_amp_step(self: Any) -> None:
    assert self.model.training, "[AMPTrainer] model was changed to eval mode!"
    start = time.perf_counter()
    data = next(self._data_loader_iter)
    data_time = time.perf_counter() - start
    with torch.autocast(self.amp_device, self.amp_type, enabled=self.amp_type is not None):
        loss_dict = self.model(data)
        losses = sum(loss_dict.values())
    self.optimizer.zero_grad()
    self.grad_scaler.scale(losses).backward()
    self._write_metrics(loss_dict, data_time)
    self.grad_scaler.step(self.optimizer)
    self.grad_scaler.update()


def _init_eval_hook(self: Any, eval_period: int, eval_function: Any) -> None:
    _eval_hook(self, eval_period or sys.maxsize, eval_function)


def _init_checkpointer(self: Any, checkpointer: Any, period: int, max_epoch: int | None = None) -> None:
    _checkpointer(self, checkpointer, period or sys.maxsize, max_epoch)


def _recall_best_metric(self: Any) -> None:
    _before_checkpoints(self)
    path = os.path.join(self.checkpointer.save_dir, "model_best.pth")
    if self.trainer.start_epoch > 0 and os.path.isfile(path):
        self.best_metric = self.checkpointer._load_file(path).get("metric", self.best_metric)


def _load_weights(self: Any, path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _train_with_epoch(self: Any, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> None:
    self.epoch = start_epoch - 1
    _train(self, start_epoch, max_epoch, iters_per_epoch)


def _default_train(self: Any) -> Any:
    """Train, and return the results of the last evaluation in the main process; None if there was none."""
    train_loop.TrainerBase.train(self, self.start_epoch, self.max_epoch, self.iters_per_epoch)
    if self.start_epoch >= self.max_epoch and not hasattr(self, "_last_eval_results"):
        self._last_eval_results = self.test(self.cfg, self.model)
    return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None


def _print_once(self: Any) -> None:
    if self._last_write is None or self._last_write[0] != events.get_event_storage().iter:
        _print_metrics(self)


def _unwritten(writer: Any) -> Iterator[tuple[str, float, int]]:
    """(name, value, iteration) of each scalar that ``writer`` has not written yet; marks them as written."""
    written: dict[str, int] = vars(writer).setdefault("_written", {})
    scalars = events.get_event_storage().latest_with_smoothing_hint(writer._window_size)
    for name, (value, iteration) in scalars.items():
        if iteration > written.get(name, -1):
            written[name] = iteration
            yield name, value, iteration


def _write_json(self: Any) -> None:
    lines: dict[int, dict[str, float]] = defaultdict(dict)
    for name, value, iteration in _unwritten(self):
        lines[iteration][name] = value
    for iteration, scalars in sorted(lines.items()):
        self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
    self._file_handle.flush()


def _write_board(self: Any) -> None:
    for name, value, iteration in _unwritten(self):
        self._writer.add_scalar(name, value, iteration)
    self._last_write = sys.maxsize  # so that the original writes images and histograms only
    _write_tensorboard(self)


def _write_and_close(self: Any) -> None:
    for writer in self._writers:
        if not isinstance(writer, events.CommonMetricPrinter):  # it prints progress, and there may be none
            writer.write()
    _close_writers(self)
