"""Text for a terminal. What belongs here: making file names and system errors printable. Not here: messages.

The name of a file may hold any byte but a slash: line breaks, control sequences, bytes of another encoding.
"""

import errno
import io
import sys
from typing import Final

_REMEDIES: Final = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on a file's size",
    errno.EACCES: "give access to it, or name another place",
    errno.EPERM: "give access to it, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a file lies where a folder is wanted: remove it, or name another place",
    errno.EEXIST: "a file lies where a folder is wanted: remove it, or name another place",
    errno.EISDIR: "a folder lies where a file is wanted: remove it, or name another place",
    errno.ENOENT: "correct the path",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit on open files",
    errno.ELOOP: "correct the links that lead in a circle",
    errno.EIO: "look after the disk",
    errno.ESTALE: "look after the network share",
}


def printable(text: str) -> str:
    """Return a name on one line, with escapes for characters that cannot be printed."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def said_of(error: OSError) -> str:
    """Return an error of the operating system, or of this project, as one message: file, problem, remedy."""
    if error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    names = " to ".join(printable(str(name)) for name in (error.filename, error.filename2) if name is not None)
    remedy = _REMEDIES.get(error.errno)
    return f"{names and names + ': '}{error.strerror}{'; ' + remedy if remedy else ''}"


def let_print_anything() -> None:
    """Make standard output escape characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def log(text: str) -> None:
    """Print a line and flush it."""
    if sys.stdout is not None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
