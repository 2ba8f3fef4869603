"""MLflow's client as this project calls it. What belongs here: opening a store, and what its errors say to a user.

Not here: what is said to MLflow (`pipelines.tracking.tracker`).
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
    """MLflow's client, whose errors are one line that names the store and says what to do."""

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
    """Turn MLflow's errors within the block into one line.

    Raises:
        TrackingError: In their place.
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
    """Return what an error says, without what follows it."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def use_store(uri: str) -> None:
    """Make a store MLflow's own for this process, once it can be used and knows where its artefacts lie.

    Raises:
        TrackingError: If it cannot be used.
    """
    require_tracking(uri)
    if follow_move(uri):
        logger.warning("%s has moved with its home; its runs and models now name their files beside it", shown(uri))
    mlflow.set_tracking_uri(uri)


def open_client(settings: Settings) -> Client:
    """Return a client of the settings' store, which can be used and knows where the artefacts lie.

    Raises:
        TrackingError: If the store cannot be used.
    """
    uri = settings.tracking_uri
    use_store(uri)
    with errors_said(uri):
        return Client(MlflowClient(uri), uri)
