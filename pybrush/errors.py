"""Every deliberate error of PyBrush. Each message says what was expected, what came and what to do.

All derive from PyBrushError and also from ValueError (what was asked is wrong) or RuntimeError (the
world is not as it must be), so that both habits of catching work.
"""

from __future__ import annotations


class PyBrushError(Exception):
    """Base of all errors that PyBrush raises on purpose."""


class ConfigurationError(PyBrushError, ValueError):
    """A setting has a value that cannot work."""


class UnsupportedError(PyBrushError, ValueError):
    """Something that is known and not handled; the message names what to use instead."""


class IdError(PyBrushError, ValueError):
    """A sample id, subject or key is of the wrong kind, or ids are not unique."""


class ContentError(PyBrushError, ValueError):
    """A sample has no canonical encoding, or its content is not what the record holds."""


class ForgetError(PyBrushError, ValueError):
    """A request cannot be served as asked; nothing was touched."""


class UnknownSamplesError(ForgetError):
    """Samples of a request are not in the record."""


class MissingRowsError(ForgetError):
    """A stage must be rebuilt and the data set no longer holds its rows."""


class GuaranteeError(ForgetError):
    """The guarantee that was asked for cannot be met."""


class FingerprintError(PyBrushError, ValueError):
    """Model, data or settings differ from what the record was made with."""


class SecretKeyError(PyBrushError, RuntimeError):
    """The record's secret key is lost, unreadable or another one."""


class RecordError(PyBrushError, RuntimeError):
    """A record is in a state in which the call makes no sense."""


class CorruptRecordError(RecordError):
    """A file of the record is damaged, truncated, exchanged or missing."""


class LockedError(RecordError):
    """Another process works on the record."""


class StorageError(RecordError):
    """The place of a record takes nothing that is written: its disk is full, read-only or failing."""


class ErasureError(RecordError):
    """Forgotten data was found where none may be; the request stays committed, not sealed."""


class TrainingError(PyBrushError, RuntimeError):
    """A stage could not be trained as the plan says."""


class MissingExtraError(PyBrushError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class ConstituentWarning(UserWarning):
    """A model that holds one constituent of several is used as if it were the model that predicts."""
