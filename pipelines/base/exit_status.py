"""Errors of console commands. What belongs here: turning an error into one message and an exit status.

Not here: any command. A user sees a traceback only if this project has a defect.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

from pipelines.base.profile import ProfileError
from pipelines.base.settings import InputError
from pipelines.base.terminal import let_print_anything, said_of
from storage.base.errors import StorageError

WRONG_INPUT: Final = 2
"""The settings, the arguments, a file or the system do not allow the command to finish."""
INTERRUPTED: Final = 130
"""The status that a shell reports after SIGINT."""
NOBODY_READS: Final = 141
"""The status that a shell reports after SIGPIPE, as in `medsam summary | head -1`."""

_SERVICES: Final = {"mlflow": "MLFLOW_TRACKING_URI", "sqlalchemy": "MLFLOW_TRACKING_URI", "botocore": "MEDSAM_STORES"}
"""Package that reports errors of a server or a database -> the setting with its address."""


def run_command(name: str, act: Callable[[], int]) -> int:
    """Run a command and return its exit status; errors outside this project end in one message.

    Args:
        name: Name of the command, for the message.
        act: Does the work; returns the exit status if no error is raised.
    """
    let_print_anything()
    try:
        status = act()
        _flush()
    except KeyboardInterrupt:
        return _end(name, "stopped; what is finished is kept, and running it again goes on from there", INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        return NOBODY_READS
    except (InputError, ProfileError, StorageError) as error:
        return _end(name, str(error))
    except MemoryError:
        return _end(name, "expected more memory than there is; end other programs, or give it smaller cases")
    except OSError as error:
        return _end(name, said_of(error))
    except Exception as error:
        service = _service(error)
        if service is None:
            raise
        return _end(name, f"{service}: {_first_line(error)}; is the address right, and does it answer?")
    return status


def _service(error: Exception) -> str | None:
    """Return the setting of the service that caused an error, or None; causes of the error are searched too."""
    packages = (kind.__module__.partition(".")[0] for cause in _causes(error) for kind in type(cause).__mro__)
    return next((_SERVICES[package] for package in packages if package in _SERVICES), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _end(name: str, message: str, status: int = WRONG_INPUT) -> int:
    try:
        _flush()
    except OSError:
        _discard_output()
    if sys.stderr is not None:
        sys.stderr.write(f"medsam {name}: {message}\n")
    return status


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _discard_output() -> None:
    """Discard buffered output; otherwise the interpreter would try to write it again at exit, and fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
