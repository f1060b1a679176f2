"""Errors that a caller can mend: one sentence that says what is wrong, where, and what to do."""


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
