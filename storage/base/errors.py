"""The errors of the storage layer. What belongs here: exception types shared by its modules. Not here: messages.

Every message says what was expected, what was found and what to do.
"""


class StorageError(Exception):
    """Base of every error this package raises on purpose."""


class BadSampleError(StorageError):
    """One source file cannot be used; all other files can.

    Attributes:
        code: Stable reason code, one of `storage.sources.npz_source.REASONS`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["BadSampleError"], tuple[str, str]]:
        """Keep the code when the error is pickled between processes."""
        return BadSampleError, (self.code, str(self))


class CaseChangedError(StorageError):
    """The content of a case's file has changed since the file was listed."""


class FingerprintMismatchError(StorageError):
    """A result on disk was made from other inputs than the caller's; the message lists every difference."""


class IntegrityError(StorageError):
    """Bytes on disk are missing, torn or altered."""


class BusyError(StorageError):
    """Another process holds the exclusive lock on this output."""
