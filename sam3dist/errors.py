"""The three ways a person's request can fail. Each message says what, where and the way out.

All survive pickling, because they cross from Ray workers to the driver.
"""


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
