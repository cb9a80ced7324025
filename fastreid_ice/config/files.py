"""Config files, including those that come with the package, and the Python files that they import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import yaml
from fastreid.config import CfgNode

from ..errors import InputError
from .keys import value_of

# A wheel has configs/ inside the package; a checkout has it next to the package.
_PACKAGE = Path(__file__).resolve().parent.parent
CONFIGS = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), _PACKAGE)


def shipped_file(path: str) -> str:
    """``path``, or the file of ``CONFIGS`` that it names if ``path`` does not exist.

    "configs/ice_demo.yml" and "ice_demo.yml" both name ``CONFIGS / "ice_demo.yml"``; other folders name nothing.
    """
    return path if os.path.exists(path) else _shipped(path) or path


def _shipped(path: str) -> str | None:
    shipped = CONFIGS / os.path.basename(path)
    return str(shipped) if os.path.dirname(path) in ("", CONFIGS.name) and shipped.is_file() else None


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merges a config file and its ``_BASE_`` into ``cfg``, in place, as fast-reid's ``merge_from_file`` does.

    There are two differences: a ``_BASE_`` that does not exist may be a file that comes with the package (see
    ``shipped_file``), and the files of ``IMPORTS`` are relative to the file that names them. A file with the same name
    as its ``_BASE_`` extends the one that comes with the package.

    Raises:
        InputError: no file, a file that is not a mapping of keys, keys that do not fit ``cfg``, or a ``_BASE_`` that is
            not a name or leads back to the file.
    """
    values = _read(path)
    try:
        merge_values(cfg, values)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from error


def merge_values(cfg: CfgNode, values: dict[str, Any]) -> None:
    """Merges nested keys into ``cfg``, in place; a whole number becomes a float if ``cfg`` holds one.

    Raises:
        InputError: keys that ``cfg`` does not have, or values of another type.
    """
    try:
        cfg.merge_from_other_cfg(CfgNode(_all_fitted(values, cfg)))
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(_sentence(error)) from error


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merges the keys and values of a command line into ``cfg``, in place, as ``merge_values`` does.

    Raises:
        InputError: as for ``merge_values``; a key without a value, or an option among them.
    """
    late = next((option for option in options if option.startswith("--")), None)
    if late:
        raise InputError(f"{late} comes after a config key: options come before keys and values")
    if len(options) % 2:
        raise InputError(f"{options[-1]}: a value is missing; config keys follow as KEY VALUE KEY VALUE ...")
    pairs = []
    for key, text in zip(options[::2], options[1::2], strict=True):
        try:
            fitted = _fitted(key, CfgNode._decode_cfg_value(text), value_of(cfg, key))
        except (KeyError, TypeError) as error:
            raise InputError(f"there is no config key {key}") from error
        pairs += [key, fitted if isinstance(fitted, float) else text]
    try:
        cfg.merge_from_list(pairs)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(_sentence(error)) from error


def _fitted(key: str, value: Any, known: Any) -> Any:
    """``value`` for a key that holds ``known`` so far, as a float if ``known`` is one.

    Raises:
        InputError: it is not a mapping, but ``known`` is a node.
    """
    if isinstance(known, CfgNode):
        if not isinstance(value, dict):
            raise InputError(f"{key} must hold keys, not {value!r}")
        return _all_fitted(value, known, f"{key}.")
    return float(value) if isinstance(known, float) and type(value) is int else value


def _all_fitted(values: dict[str, Any], known: CfgNode, prefix: str = "") -> dict[str, Any]:
    wrong = next((key for key in values if not isinstance(key, str)), None)
    if wrong is not None:
        raise InputError(f"{prefix}{wrong!r} is not a config key")
    return {key: _fitted(prefix + key, value, known.get(key)) for key, value in values.items()}


def _sentence(error: Exception) -> str:
    """The message of a yacs error, which may have several lines, as one sentence."""
    return " ".join(str(error.args[0] if error.args else error).split())


def _read(path: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a file merged over those of its ``_BASE_``; ``above`` are the files of which it is the base."""
    try:
        with open(path, encoding="utf-8") as file:
            own = yaml.safe_load(file)
    except OSError as error:
        raise InputError(f"config {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, dict):
        raise InputError(f"{path} is not a mapping of config keys to values")
    folder = os.path.dirname(path)
    names = CfgNode._decode_cfg_value(own.get("IMPORTS"))  # a list, or a text such as ("method.py",)
    if isinstance(names, (list, tuple)):
        own["IMPORTS"] = [os.path.abspath(os.path.join(folder, name)) for name in names]
    base = own.pop("_BASE_", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise InputError(f"{path}: _BASE_ {base!r} must be the name of a config file")
    read = (*above, os.path.realpath(path))
    places = (os.path.join(folder, os.path.expanduser(base)), base, _shipped(base))
    files = [place for place in places if place and os.path.exists(place)] or [base]
    below = next((file for file in files if os.path.realpath(file) not in read), None)
    if below is None:
        raise InputError(f"{path}: its _BASE_ leads back to {files[0]}; name a config that is not based on this one")
    return _overlaid(_read(below, read), own)


def _overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` overridden by the values of ``above``, also in nested mappings."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged


def import_files(paths: Iterable[str]) -> None:
    """Imports Python files, each once per process, so that a config can name what they register.

    Raises:
        InputError: no such file, or one with the name of another loaded module.
    """
    for path in map(os.path.abspath, paths):
        name, suffix = os.path.splitext(os.path.basename(path))
        if suffix != ".py" or not os.path.isfile(path):
            raise InputError(f"IMPORTS: no Python file {path}")
        known = sys.modules.get(name)
        if getattr(known, "__file__", None) == path:
            continue
        if known is not None:
            raise InputError(f"IMPORTS: {path} has the name of another module that is already loaded; rename it")
        spec = spec_from_file_location(name, path)
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
