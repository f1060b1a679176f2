"""What a kernel that Numba keeps on disk was made of, so that it is made anew when any of it changes.

Numba writes the machine code of a kernel, and in it that of everything the kernel calls, to a file beside the
module, and takes it from there as long as the text of that module is the same. It does not look at other modules
that the kernel's callees and constants come from. What it does look at are the values of arguments left out. So a
kernel that uses other modules

- has a last argument that nobody gives, whose default is the digest of their sources, and
- calls kernels there that are not kept on disk themselves (``cache=True``), or that use nothing but their own
  module: others would be taken as they were.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType


def digest_of_sources(*modules: ModuleType) -> int:
    """A whole number of 63 bits that says what is written in some modules, whatever their order."""
    texts = sorted(Path(str(module.__file__)).read_bytes() for module in modules)
    digest = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).digest()
    return int.from_bytes(digest[:8], "little") >> 1
