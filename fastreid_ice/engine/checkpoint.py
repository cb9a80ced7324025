"""fast-reid's Checkpointer, except that weights that do not fit are an error, and that its files are always whole."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from fastreid.engine.train_loop import HookBase
from fastreid.utils.checkpoint import Checkpointer as _Checkpointer

from ..errors import InputError
from ..files import explaining_writes, remove_parts, replacing
from ..modeling.weights import read_weights
from ..processes import of_first, run_id


def read_checkpoint(path: str, *, mmap: bool = False) -> dict:
    """A fast-reid checkpoint, on the CPU; with ``mmap`` its weights are read when they are used.

    Raises:
        InputError: no file, a file that cannot be read, or one that holds something else.
    """
    state = read_weights(path, mmap=mmap)
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise InputError(
            f"{path} is no fast-reid checkpoint (a dict with the weights under 'model'); bare backbone weights "
            f"go into MODEL.BACKBONE.PRETRAIN_PATH, with MODEL.BACKBONE.PRETRAIN True"
        )
    return state


def write_checkpoint(path: str, state: dict) -> None:
    """Writes ``state`` to ``path``, which holds either all of it or what was there before, whatever happens.

    Raises:
        InputError: the file cannot be written, as on a full disk.
    """
    with explaining_writes(path), replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch tells an error of the file, and an interrupt while it writes, as a wrong position in the file.
            raise error.__context__ or error from None


class Checkpointer(_Checkpointer):
    """fast-reid's Checkpointer, which skips what does not fit and goes on from random weights; this one refuses.

    Heads may be missing, since users start from backbones; a part of a backbone may not.

    fast-reid writes over the files that are there. Here a kill or a full disk at any moment leaves those that were
    whole, and ``last_checkpoint`` names one of them: the last of the period, never ``model_best.pth``, after which the
    checkpoint of the epoch is still to come.
    """

    def save(self, name: str, **kwargs: object) -> None:
        """Writes model, checkpointables and ``kwargs`` to ``name`` + ".pth", in the main process.

        Raises:
            InputError: the file cannot be written, or a weight is not finite; nothing is saved then.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        model = self.model.state_dict()
        broken = [key for key, value in model.items() if not value.isfinite().all()]
        if broken:
            raise InputError(
                f"{broken[0]} (and {len(broken) - 1} more) is not finite any more: the weights are not saved; "
                f"lower SOLVER.BASE_LR; {self.what_is_left()}"
            )
        state = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, {"model": model, **state, **kwargs, "run_id": run_id()})
        if name != "model_best":
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        marker = os.path.join(self.save_dir, "last_checkpoint")
        with explaining_writes(marker), replacing(marker) as file:
            file.write(last_filename_basename.encode())

    def tidy(self, *, resumed: bool) -> None:
        """Before training: removes what a kill has left half written, and mark and best weights of an earlier run.

        A run that starts anew and is killed before its first checkpoint would otherwise be resumed from that run's, and
        one that is killed before its first evaluation would name that run's best weights as its own.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        remove_parts(self.save_dir)
        if not resumed:
            for name in ("last_checkpoint", "model_best.pth"):
                Path(self.save_dir, name).unlink(missing_ok=True)

    def what_is_left(self) -> str:
        """For the end of a sentence: the checkpoint that a run which cannot go on leaves."""
        last = self.get_checkpoint_file()
        return f"the last checkpoint stays: {last}" if last else "there is no checkpoint yet"

    def has_checkpoint(self) -> bool:
        return of_first(super().has_checkpoint)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        last = of_first(self.get_checkpoint_file) if resume else ""
        return self.load(last) if last else self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """fast-reid's, except that the first process alone reads the file; called in all of them.

        Warns of optimiser, schedule or hooks whose state is asked for and missing.

        Raises:
            InputError: no file, one that cannot be read, or weights that do not fit.
        """
        if not path:
            return super().load(path, checkpointables)
        self.logger.info("Loading checkpoint from %s", path)
        self._path = path
        state = of_first(lambda: _read_weights(path))
        self._log_incompatible_keys(self._load_model(state))
        wanted = self.checkpointables if checkpointables is None else checkpointables
        lost = sorted(set(wanted) - set(state))
        for key in wanted:
            if key in state:
                self.checkpointables[key].load_state_dict(state.pop(key))
        if lost:
            self.logger.warning(
                "%s holds no state of %s, which starts anew: the run is not the one that was interrupted",
                path,
                ", ".join(lost),
            )
        return state

    def _log_incompatible_keys(self, incompatible) -> None:
        if incompatible.incorrect_shapes:
            name, found, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"{self._path} does not fit this model: {name} is {found}, expected {expected}; use the "
                f"MODEL.BACKBONE and MODEL.HEADS that it was trained with"
            )
        missing = [name for name in incompatible.missing_keys if "backbone." in name]
        if missing:
            raise InputError(
                f"{self._path} does not fit this model: it has no {missing[0]} (and {len(missing) - 1} more); use the "
                f"MODEL.BACKBONE that it was trained with"
            )
        super()._log_incompatible_keys(incompatible)


class SaveEpochs(HookBase):
    """Saves ``model_0004.pth`` after every so many epochs, counted from 0, and ``model_final.pth`` after the last one.

    Args:
        period: in epochs; 0 for the last one alone.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def after_epoch(self) -> None:
        epoch = self.trainer.epoch
        if epoch + 1 == self.trainer.max_epoch:
            self.trainer.checkpointer.save("model_final", epoch=epoch)
        elif self.period and (epoch + 1) % self.period == 0:
            self.trainer.checkpointer.save(f"model_{epoch:04d}", epoch=epoch)


def _read_weights(path: str) -> dict:
    if not os.path.isfile(path):
        raise InputError(f"MODEL.WEIGHTS: no file {path!r}")
    return read_checkpoint(path)
