"""fast-reid's Checkpointer, except that weights that do not fit are an error, and that files are never incomplete."""

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
    """Reads a fast-reid checkpoint, on the CPU; with ``mmap`` its weights are only read when they are used.

    Raises:
        InputError: no file, a file that cannot be read, or one that holds something else.
    """
    state = read_weights(path, mmap=mmap)
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise InputError(
            f"{path} is not a fast-reid checkpoint (a dict with the weights under 'model'); bare backbone weights "
            f"go into MODEL.BACKBONE.PRETRAIN_PATH, with MODEL.BACKBONE.PRETRAIN True"
        )
    return state


def write_checkpoint(path: str, state: dict) -> None:
    """Writes ``state`` to ``path``; if that fails at any point, the file there before is unchanged.

    Raises:
        InputError: the file cannot be written, as on a full disk.
    """
    with explaining_writes(path), replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch reports a file error, or an interrupt while it writes, as a wrong position in the file.
            raise error.__context__ or error from None


class Checkpointer(_Checkpointer):
    """A Checkpointer that refuses weights that do not fit; fast-reid's skips them and keeps random weights.

    Heads may be missing, since users start from backbones; parts of a backbone may not.

    fast-reid overwrites existing files. Here a kill or a full disk at any moment leaves the complete ones, and
    ``last_checkpoint`` names one of them: the last periodic checkpoint, never ``model_best.pth``, which is saved before
    the checkpoint of its epoch.
    """

    def save(self, name: str, **kwargs: object) -> None:
        """Writes model, checkpointables and ``kwargs`` to ``name`` + ".pth", in the main process.

        Raises:
            InputError: the file cannot be written, or a weight is not finite; nothing is then saved.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        model = self.model.state_dict()
        broken = [key for key, value in model.items() if not value.isfinite().all()]
        if broken:
            raise InputError(
                f"{broken[0]} (and {len(broken) - 1} more) is no longer finite: the weights are not saved; "
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
        """Before training: removes files half written at a kill, and marker and best weights of an earlier run.

        Otherwise a new run that is killed before its first checkpoint would be resumed from the earlier run's, and one
        that is killed before its first evaluation would report the earlier run's best weights as its own.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        remove_parts(self.save_dir)
        if not resumed:
            for name in ("last_checkpoint", "model_best.pth"):
                Path(self.save_dir, name).unlink(missing_ok=True)

    def what_is_left(self) -> str:
        """The end of a sentence: the checkpoint that remains of a run that cannot continue."""
        last = self.get_checkpoint_file()
        return f"the last checkpoint is kept: {last}" if last else "there is no checkpoint yet"

    def has_checkpoint(self) -> bool:
        return of_first(super().has_checkpoint)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        last = of_first(self.get_checkpoint_file) if resume else ""
        return self.load(last) if last else self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Like fast-reid's, except that only the first process reads the file; called in all of them.

        Warns if the state of the optimiser, the schedule or a hook is asked for and missing.

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
                "%s holds no state of %s, which starts afresh: the run is not the one that was interrupted",
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
    """Saves ``model_0004.pth`` (epochs from 0) after every ``period`` epochs, and ``model_final.pth`` after the last.

    Args:
        period: in epochs; 0 for only the last one.
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
