"""MLflow's client with readable errors. What belongs here: opening a store, and its error messages.

Not here: logging runs and models (`pipelines.tracking.tracker`).
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
from alembic.util.exc import CommandError as AlembicError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.base.settings import Settings
from pipelines.tracking.store import TrackingError, follow_move, require_tracking, shown

logger = logging.getLogger(__name__)


class Client:
    """MLflow's client; each of its errors becomes one line that names the store and says what to do."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        @functools.wraps(call)
        def said(*arguments: object, **named: object) -> object:
            with errors_said(self._uri):
                return call(*arguments, **named)

        return said


@contextmanager
def errors_said(uri: str) -> Iterator[None]:
    """Turn MLflow's errors within the block into errors of one line.

    Raises:
        TrackingError: If MLflow raises an error.
    """
    try:
        yield
    except (MlflowException, AlembicError) as error:
        upgrade = isinstance(error, AlembicError) or "database schema" in str(error)
        remedy = (
            "it was made by another version of MLflow: install that one, or for an older file run `mlflow db upgrade`"
            if upgrade
            else "see that the store can be reached and written, then run again"
        )
        raise TrackingError(f"MLflow at {shown(uri)}: {first_line(error)}; {remedy}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def use_store(uri: str) -> None:
    """Check a store, correct the addresses in it if its folder has moved, and make it MLflow's store in this process.

    Raises:
        TrackingError: If the store cannot be used.
    """
    require_tracking(uri)
    if follow_move(uri):
        logger.warning("%s has moved with its folder; the paths of its files have been corrected", shown(uri))
    mlflow.set_tracking_uri(uri)


def open_client(settings: Settings) -> Client:
    """Return a client of the settings' store, after the checks of `use_store`.

    Raises:
        TrackingError: If the store cannot be used.
    """
    uri = settings.tracking_uri
    use_store(uri)
    with errors_said(uri):
        return Client(MlflowClient(uri), uri)
