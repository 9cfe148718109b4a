"""Every error a user can meet.

::

    MaectlError                  exit 1: what happened, with which value, and what to do
    ├── UsageError               exit 2: the command line, a recipe or a label file is wrong
    ├── DataError                the folder holds nothing that can be used
    ├── Unreadable               one source cannot be decoded; caught by the core and quarantined
    ├── RunError                 a run folder or checkpoint is missing, in use or does not fit
    └── TrainingError            training cannot go on (non-finite loss, no source left to read)

The command line catches ``MaectlError`` alone; any other exception is a bug and keeps its traceback.
"""

__all__ = ["DataError", "MaectlError", "RunError", "TrainingError", "Unreadable", "UsageError"]


class MaectlError(Exception):
    """Root of the tree; its text is one line a user can act on."""


class UsageError(MaectlError):
    """The command line, a recipe or a label file asks for something impossible."""


class DataError(MaectlError):
    """The images given cannot be used."""


class Unreadable(DataError):
    """One source cannot be decoded; the text is the reason written to quarantine.csv."""


class RunError(MaectlError):
    """A run folder or a checkpoint is missing, incomplete, in use, or does not fit the request."""


class TrainingError(MaectlError):
    """Training cannot go on."""
