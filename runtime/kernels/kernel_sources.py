"""What compiled work that Numba keeps on disk was made of, so that it is made anew when any of it changes.

Numba looks at the text of the module that a function stands in, and at the values that the function takes from around
it, but not at other modules whose functions become part of the machine code. So work that is kept takes the digest of
their sources from around it, and what it calls is not kept by itself, unless it uses nothing but its own module.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType


def digest_of_sources(*modules: ModuleType) -> int:
    """A whole number from 1 that says what is written in some modules."""
    texts = (hashlib.sha256(Path(str(module.__file__)).read_bytes()).digest() for module in modules)
    return int.from_bytes(hashlib.sha256(b"".join(texts)).digest()[:7], "little") + 1
