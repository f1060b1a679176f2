"""Tensors in a safetensors file with its version and a checksum, written as a whole or not at all.

The header's one entry has the version of the form and the SHA-256 of all tensors; the order of several would change
from file to file, and equal tensors are to make equal files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from runtime.errors import FormatError


def save_checked(tensors: Mapping[str, Tensor], path: Path, form: str, version: str) -> None:
    """Write contiguous CPU tensors to `path`, which appears when it is whole.

    Args:
        form: name of the header's entry.
        version: of the form, without white space.
    """
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, {form: f"{version} {_digest(tensors)}"})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)


def load_checked(path: Path, form: str, version: str) -> dict[str, Tensor]:
    """What `save_checked` wrote, under the same names.

    Raises:
        FormatError: the file is missing, damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found, _, digest = (file.metadata() or {}).get(form, "").partition(" ")
            if found != version:
                raise FormatError(
                    f"{path} has version {found!r}, but only {version} is known here; "
                    "update lexpert or save the model again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} cannot be read ({error}); get the model again") from None
    if _digest(tensors) != digest:
        raise FormatError(f"{path} is damaged: its checksum does not fit; get the model again")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
