"""Every error that Sordino raises on purpose.

    SordinoError
    ├── InvalidParameterError (also ValueError)   an argument or a combination of arguments
    ├── InvalidDataError (also ValueError)        a record file, a record, a label
    ├── BudgetExceededError                       a charge that does not fit the declared budget
    ├── PrecisionError                            NaN, infinity, or a number too coarse to be safe
    ├── EdgeworthRefusedError                     an expansion too inaccurate to say anything
    ├── EntropyError                              the operating system gave no randomness
    ├── LedgerError                               an unreadable, broken or contradicting record
    ├── VerificationError                         a run folder that does not prove its claim
    ├── ModelUnavailableError                     a model that cannot be found, fetched or read
    └── MissingExtraError (also ImportError)      an optional dependency that is not installed

Messages name what was required, what was found and what to do. They never contain data: records
are named by file and line number only.
"""

from __future__ import annotations


class SordinoError(Exception):
    """Root of all errors raised on purpose; the command line prints it and exits with code 2."""


class InvalidParameterError(SordinoError, ValueError):
    """An argument, or a combination of arguments, that is not allowed."""


class InvalidDataError(SordinoError, ValueError):
    """A record file that cannot be used as it is."""


class BudgetExceededError(SordinoError):
    """A charge that does not fit into the declared budget; nothing was released."""


class PrecisionError(SordinoError):
    """A NaN, an infinity, or a number too coarse for a safe statement."""


class EdgeworthRefusedError(SordinoError):
    """An Edgeworth expansion whose error is too large, or that contradicts the main accountant."""


class EntropyError(SordinoError):
    """The operating system did not give secret randomness; there is no fallback."""


class LedgerError(SordinoError):
    """A ledger, transcript or sealed state that is unreadable or contradicts itself."""


class VerificationError(SordinoError):
    """A run folder that does not prove what it claims."""


class ModelUnavailableError(SordinoError):
    """A model that cannot be found, fetched or read."""


class MissingExtraError(SordinoError, ImportError):
    """An optional dependency that the request needs and that is not installed."""
