"""An encoder in a quarter of its bytes, for packages and small machines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.sentence_transformers_folder import read_object
from runtime.errors import ConflictError


def shrink(folder: Path, out: Path) -> int:
    """Write the encoder in `folder` to `out`, with its models' weights in 8 bits; see `eight_bit_weights`.

    The result loads as the encoder does; its vectors differ by what rounding makes of them, which an evaluation
    tells. Saved again, it is written in float32, which other libraries read.

    Returns:
        Bytes of the new folder.

    Raises:
        ConflictError: `out` exists.
        UsageError: a weight does not fit 8 bits.
    """
    from safetensors.torch import load_file

    from retrieval.encoders.eight_bit_weights import save_eight_bit

    if out.exists():
        raise ConflictError(f"{out} exists already; give the name of a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        SparseEncoder.load(folder).save(partial)
        for weights in partial.rglob("model.safetensors"):
            if "model_type" in read_object(weights.parent / "config.json"):  # not the table of queries
                save_eight_bit(load_file(weights), weights.parent)
                weights.unlink()
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
