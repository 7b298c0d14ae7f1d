"""The three ways a person's request can fail. Each message says what, where and the way out.

All survive pickling, because they cross from Ray workers to the driver.
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of these Python does not say which file it was."""


class Sam3DistError(ValueError):
    """Base of every error a person can mend; the command line prints it as one line and exits with 2."""


class ConfigError(Sam3DistError):
    """A setting is unknown, out of range, or does not go with another."""


class DataError(Sam3DistError):
    """An input file or record cannot be used."""


class CheckpointError(Sam3DistError):
    """A checkpoint is missing, incomplete, or belongs to another architecture."""


class NonFiniteError(Sam3DistError):
    """A loss or gradient became NaN or infinite; the message names the first module that produced it."""


class ResourceError(Sam3DistError):
    """The cluster cannot give what the job asks for."""


class MemoryFullError(ResourceError):
    """The memory of a GPU or a node is full; less at a time may do."""


def in_one_line(error: BaseException) -> str | None:
    """What to tell a person who can mend the error: one of ours, or a file or disk that fails; None for a bug."""
    if isinstance(error, Sam3DistError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        if error.filename is not None:
            return f"{error.filename}: {error.strerror.lower()}."
        if error.errno in DISK_FULL:
            return f"{error.strerror.lower()}."
    return None


def first_line(error: BaseException) -> str:
    """What an exception of a foreign library says, in at most one line."""
    return str(error).strip().split("\n")[0] or type(error).__name__
