"""What a command of the console script ends with. What belongs here: errors to one message and an exit status.

Not here: any command. A traceback means a defect of this project, and nothing else.
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
"""Settings, arguments, files or the system do not allow what was asked for."""
INTERRUPTED: Final = 130
"""As a shell gives it after SIGINT."""
NOBODY_READS: Final = 141
"""As a shell gives it after SIGPIPE: `medsam summary | head -1`."""

_SERVICES: Final = {"mlflow": "MLFLOW_TRACKING_URI", "sqlalchemy": "MLFLOW_TRACKING_URI", "botocore": "MEDSAM_STORES"}
"""Package whose errors tell of a server or data base -> the setting that says which."""


def run_command(name: str, act: Callable[[], int]) -> int:
    """Run a command and return its exit status; what goes wrong outside this project is said in one message.

    Args:
        name: The command, for the message.
        act: Does the work and returns the status of a run without errors.
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
    """Return the setting of the service that an error, or one that it came of, is about."""
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
    """Send what standard output still holds to nowhere; the interpreter would fail to write it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
