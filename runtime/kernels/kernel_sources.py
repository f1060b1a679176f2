"""What compiled work that Numba keeps on disk was made of, so that it is made anew when any of it changes.

Numba writes the machine code of a function, and in it that of everything the function calls, to a file beside the
module, and takes it from there as long as the text of that module is the same. It does not look at other modules that
callees and constants come from. What it does look at are the values that the function takes from around it, and those
of arguments left out. So work that is kept and uses other modules

- takes the digest of their sources from around it, or has a last argument that nobody gives, whose default it is, and
- calls functions there that are not kept on disk themselves (``cache=True``), or that use nothing but their own
  module: others would be taken as they were.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType


def digest_of_sources(*modules: ModuleType) -> int:
    """A whole number, 1 to 2⁵⁶, that says what is written in some modules, whatever their order."""
    texts = sorted(hashlib.sha256(Path(str(module.__file__)).read_bytes()).digest() for module in modules)
    return int.from_bytes(hashlib.sha256(b"".join(texts)).digest()[:7], "little") + 1
