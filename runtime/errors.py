"""Errors that a caller can mend: one sentence that says what is wrong, where, and what to do."""

import errno


class LexpertError(Exception):
    """Base of all errors that are shown as one sentence instead of a traceback."""

    exit_code = 1


class UsageError(LexpertError, ValueError):
    """An argument, option or query that cannot be honoured as given."""

    exit_code = 2


class InputError(LexpertError, ValueError):
    """Data handed in (a corpus line, a vector, a judgement) that is malformed; says file and line."""


class NotFoundError(LexpertError, LookupError):
    """A folder, file, document, data set or optional package that is not there."""


class FormatError(LexpertError, ValueError):
    """A file that is damaged, truncated, of an unknown version, or not what its manifest says."""


class ConflictError(LexpertError):
    """Another process holds what is asked for, or what exists differs from what is asked for."""


def remedy(error: OSError) -> str:
    """What the caller can do about `error`, as the end of a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or write to another disk"
    if error.errno == errno.EFBIG:
        return "allow larger files (ulimit -f) or write to a disk that takes them"
    if error.errno == errno.EIO:
        return "the disk may be damaged: write to another one"
    return "check the path and its permissions"
