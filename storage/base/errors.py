"""The errors of the storage layer. What belongs here: exception types shared by its modules. Not here: messages.

Every message says what was expected, what was found and what to do.
"""


class StorageError(Exception):
    """Base of every error this package raises on purpose."""


class BadSampleError(StorageError):
    """One source file cannot be used; the rest of the data set is not affected.

    Attributes:
        code: Stable reason code, one of `storage.sources.npz_source.REASONS`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["BadSampleError"], tuple[str, str]]:
        """Let the error cross from one process to another with its code."""
        return BadSampleError, (self.code, str(self))


class CaseChangedError(StorageError):
    """A case's file holds something else than when it was listed."""


class FingerprintMismatchError(StorageError):
    """Something on disk was made from other inputs than the caller asks for; the message lists every difference."""


class IntegrityError(StorageError):
    """Bytes on disk are missing, torn or altered."""


class BusyError(StorageError):
    """Another process holds the exclusive lock on this output."""
