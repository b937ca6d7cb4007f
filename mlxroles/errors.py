"""Errors a user can cause or must act on, and the exit status that each one ends in.

    MlxrolesError            1
    ├── SpecError            1   an experiment file, option or grid that cannot be run
    ├── PairError            1   a pair or catalogue entry that is unknown or does not fit together
    ├── PromptError          1   a prompt, prompt file or token id that cannot be used
    ├── ModelError           1   a model folder that cannot be loaded, trusted or captured
    ├── VectorError          1   a vector that is unknown, or does not fit the model or the layer
    ├── RanksError           1   a process that holds a part of a model cannot go on
    └── StoreError           1   a run folder or result file that cannot be read or written
        ├── LockedError      4   another process writes this run
        └── IntegrityError   5   what is on disk is not what was written

A message says what was found, what was expected and what to do, in one line. Programmer
mistakes are plain ``ValueError`` or ``assert`` and keep their traceback.
"""

FAILED_CELLS = 3
"""Exit status of a run that came to its end with cells that could not be computed."""
SIGNAL_STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
"""Exit status of a run that a signal ended."""


class MlxrolesError(Exception):
    """Base of every error that the command line prints as one line without a traceback."""

    exit_code = 1


class SpecError(MlxrolesError):
    """An option, grid or experiment file asks for something that cannot be run."""


class PairError(MlxrolesError):
    """A pair, family or catalogue entry is unknown, or its two models do not fit together."""


class PromptError(MlxrolesError):
    """A prompt, prompt file or token id cannot be used with this model."""


class ModelError(MlxrolesError):
    """A model cannot be loaded, captured or trusted."""


class VectorError(MlxrolesError):
    """A vector or its file is unknown, or does not fit the model or the layer."""


class RanksError(MlxrolesError):
    """The processes that hold one model together cannot go on."""


class StoreError(MlxrolesError):
    """A run folder or result file cannot be read or written."""


class LockedError(StoreError):
    """Another process holds the lock of this run folder."""

    exit_code = 4


class IntegrityError(StoreError):
    """A file on disk does not hold what was written to it."""

    exit_code = 5
