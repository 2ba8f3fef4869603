"""MLflow: one run per stage and variant under a parent, found by fingerprint.

What belongs here: logging runs and models to MLflow. Not here: choosing what to log.

A run is found by the tag `medsam.fingerprint`, never by its name. A reused result adds nothing to its finished run, and
a resumed training continues after the last logged step.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
from mlflow.entities import LifecycleStage, Metric, Param, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines.base.settings import Settings
from pipelines.tracking.client import first_line, open_client, use_store
from pipelines.tracking.store import TrackingError, local_path, shown
from storage.base.atomic import parse_json
from storage.base.errors import IntegrityError
from storage.base.fingerprints import file_hash
from storage.base.locks import waiting_lock
from storage.base.processes import Process, birth, process_note, read_process, this_process

logger = logging.getLogger(__name__)

FINGERPRINT_TAG = "medsam.fingerprint"
PROCESS_TAG = "medsam.process"
PLACE_TAG = "medsam.process_note"
"""Place and start time of the process in `PROCESS_TAG`; runs of earlier versions lack this tag."""

WEIGHTS_TAG = "medsam.weights"
"""SHA-256 of the file of weights of a registered version; versions of earlier releases lack this tag."""

PARENT_TAG = "mlflow.parentRunId"
CHAMPION = "champion"

_BATCH = 900
"""Metrics in one call; MLflow accepts at most 1000."""

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

Point = tuple[int, Mapping[str, float]]


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run, and whether it was complete when it was opened."""

    run_id: str
    url: str
    finished: bool


class Tracker:
    """Logs to one experiment of one MLflow store."""

    def __init__(self, settings: Settings) -> None:
        self._uri = settings.tracking_uri
        self._folder = settings.mlflow_folder
        self._experiment_name = f"repvit-medsam/{settings.profile.name}"
        self._model = registered_model(settings)
        self._local = self._uri.startswith("sqlite:///")
        # Under a lock: processes that create the tables of a new sqlite file at the same time fail.
        with waiting_lock(self._folder / "init.lock"):
            self._client = open_client(settings)
            self._experiment_id = self._experiment()

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment_name)
        if found is not None:
            if found.lifecycle_stage == LifecycleStage.DELETED:
                logger.warning("MLflow experiment %s was deleted; restored with its runs", self._experiment_name)
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        location = (self._folder / "artifacts").as_uri() if self._local else None
        return str(self._client.create_experiment(self._experiment_name, artifact_location=location))

    def _url(self, run_id: str) -> str:
        base = os.environ.get("MEDSAM_MLFLOW_PAGE", "http://127.0.0.1:5000") if self._local else self._uri
        return f"{base}/#/experiments/{self._experiment_id}/runs/{run_id}"

    def find(self, fingerprint: str) -> Run | None:
        """Return the run of this fingerprint, or None; a run that was deleted on the page is restored."""
        query = f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
            for run in self._client.search_runs([self._experiment_id], query, view, max_results=1):
                if view == ViewType.DELETED_ONLY:
                    logger.warning("MLflow run %s (%s) was deleted; restored", run.info.run_name, run.info.run_id)
                    self._client.restore_run(run.info.run_id)
                found: Run = run
                return found
        return None

    def open_run(
        self,
        name: str,
        fingerprint: str,
        *,
        parent: Callable[[], TrackedRun] | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> TrackedRun:
        """Find the run of this fingerprint, or start one.

        Args:
            name: Name of the run on the page.
            fingerprint: Fingerprint of the result of the run.
            parent: Returns the parent of a new run; not called if the run exists.
            tags: Further tags of a new run, for example data fingerprints.
            params: Parameters of a new run; those of an existing run are not changed.
        """
        found = self.find(fingerprint)
        if found is not None:
            finished = found.info.status == "FINISHED"
            if not finished:
                self._client.update_run(found.info.run_id, status="RUNNING")
                for key, value in _own_tags().items():
                    self._client.set_tag(found.info.run_id, key, value)
            return TrackedRun(found.info.run_id, self._url(found.info.run_id), finished)
        all_tags = {FINGERPRINT_TAG: fingerprint, **_own_tags(), **(tags or {})}
        if parent is not None:
            all_tags[PARENT_TAG] = parent().run_id
        run = self._client.create_run(self._experiment_id, tags=all_tags, run_name=name)
        texts = [Param(key, str(value)[:6000]) for key, value in (params or {}).items()]
        for start in range(0, len(texts), 100):
            self._client.log_batch(run.info.run_id, params=texts[start : start + 100])
        return TrackedRun(run.info.run_id, self._url(run.info.run_id), finished=False)

    def last_step(self, run: TrackedRun, metric: str) -> int:
        """Return the last step at which a metric was logged, or -1."""
        history = self._client.get_metric_history(run.run_id, metric)
        return max((point.step for point in history), default=-1)

    def log_curve(self, run: TrackedRun, points: Iterable[Point], prefix: str = "") -> int:
        """Log the points (step, values) after the last logged step of the run; return the number of new steps.

        Args:
            run: An open run.
            points: Ascending steps, each with the same metric names.
            prefix: Put before every metric's name.
        """
        last: int | None = None
        batch: list[Metric] = []
        count = 0
        for step, values in points:
            if last is None:
                first_name = next(iter(values), None)
                last = -1 if first_name is None else self.last_step(run, prefix + first_name)
            if step <= last:
                continue
            count += 1
            batch += [Metric(prefix + name, value, 0, step) for name, value in values.items()]
            if len(batch) >= _BATCH - len(values):
                self._client.log_batch(run.run_id, metrics=batch)
                batch = []
        if batch:
            self._client.log_batch(run.run_id, metrics=batch)
        return count

    def log_metrics(self, run: TrackedRun, values: Mapping[str, float]) -> None:
        """Log single values; a value that is already logged is not logged twice."""
        present = self._client.get_run(run.run_id).data.metrics
        new = [Metric(name, value, 0, 0) for name, value in values.items() if present.get(name) != value]
        for start in range(0, len(new), _BATCH):
            self._client.log_batch(run.run_id, metrics=new[start : start + _BATCH])

    def log_picture(self, run: TrackedRun, file: Path, to: str) -> None:
        """Copy one file into the run's artefacts."""
        self._client.log_artifact(run.run_id, str(file), to)

    def log_files(self, run: TrackedRun, folder: Path, to: str) -> None:
        """Copy a folder's files into the run's artefacts."""
        self._client.log_artifacts(run.run_id, str(folder), to)

    def close_run(self, run: TrackedRun, *, failed: bool = False) -> None:
        """End a run."""
        self._client.set_terminated(run.run_id, "FAILED" if failed else "FINISHED")

    def close_stale(self) -> list[str]:
        """End runs of this experiment that a dead process of this machine left RUNNING; return their ids."""
        if not self._local:
            return []
        stale = []
        for run in self._client.search_runs([self._experiment_id], "attributes.status = 'RUNNING'"):
            process = _process_of(run.data.tags)
            # One that names no place may be another machine's, and MLflow does not say when it last logged.
            if process is None or process.place is None:
                continue
            if process.gone(run.info.start_time / 1000):
                self._client.set_terminated(run.info.run_id, "KILLED")
                stale.append(str(run.info.run_id))
        return stale

    def register(
        self, run: TrackedRun, model_file: Path, score: float, *, metric: str = "dsc", beside: Iterable[Path] = ()
    ) -> tuple[str, bool]:
        """Register a model file as a version, and move the `champion` alias to it if it scores higher on validation.

        Weights that are registered are not registered again, whichever run reported them: a new way of scoring is
        another run of the same student. Their version takes over the new score.

        Args:
            run: The run that reported the model; a new version belongs to it.
            model_file: A model saved by `medsam_core.models.checkpoints.save_model`.
            beside: Further files in its folder that belong to the model and are registered with it.
            score: Mean over validation cases, higher is better; test scores are never used to choose.
            metric: Metric of the score; a version that holds the alias by another metric loses it.

        Returns:
            The version, and whether it holds the alias now.
        """
        self._ensure_registered_model()
        tags = {f"validation_{metric}": repr(score), WEIGHTS_TAG: file_hash(model_file)}
        version = self._version(run, tags[WEIGHTS_TAG])
        files = {"model": model_file, **{file.stem: file for file in beside}}
        if version is None:
            self._log_model(run.run_id, files)
            source = f"{self._client.get_run(run.run_id).info.artifact_uri}/model"
            version = self._client.create_model_version(self._model, source=source, run_id=run.run_id, tags=tags)
        else:
            if self._local and _gone(version.source):
                logger.warning("%s: the files of version %s are gone; written again", self._model, version.version)
                self._log_model(version.run_id, files)
            for key, value in tags.items():
                self._client.set_model_version_tag(self._model, version.version, key, value)
        holder = self.champion()
        held = -math.inf if holder is None else float(holder.tags.get(f"validation_{metric}", "-inf"))
        if holder is None or score > held or math.isnan(held):
            self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
            holder = self.champion()
        return str(version.version), bool(holder is not None and holder.version == version.version)

    def _version(self, run: TrackedRun, weights: str) -> ModelVersion | None:
        """Return the version that holds these weights, else the one of this run, or None."""
        versions: list[ModelVersion] = list(self._client.search_model_versions(f"name = '{self._model}'"))
        same = [version for version in versions if self._weights(version) == weights]
        return next(iter([*same, *(version for version in versions if version.run_id == run.run_id)]), None)

    def _weights(self, version: ModelVersion) -> str | None:
        """Return the hash of a version's weights; None if neither its tags nor a local file tell it."""
        noted: str | None = version.tags.get(WEIGHTS_TAG)
        if noted or not self._local or not version.source.startswith("file:"):
            return noted
        files = [*local_path(version.source).rglob("model.safetensors")]
        return file_hash(files[0]) if len(files) == 1 else None

    def champion(self) -> ModelVersion | None:
        """Return the model version that holds the `champion` alias, or None."""
        try:
            found: ModelVersion = self._client.get_model_version_by_alias(self._model, CHAMPION)
        except TrackingError as error:
            # MLflow reports a missing alias as an invalid parameter; other errors mean that the store fails.
            if isinstance(error.__cause__, MlflowException) and error.__cause__.error_code in _ABSENT:
                return None
            raise
        return found

    def _ensure_registered_model(self) -> None:
        if not self._client.search_registered_models(f"name = '{self._model}'"):
            description = "RepViT-MedSAM students; `champion` has the best validation DSC."
            self._client.create_registered_model(self._model, description=description)

    def _log_model(self, run_id: str, files: Mapping[str, Path]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("registered_model.py")),
                artifacts={name: str(file) for name, file in files.items()},
                pip_requirements=["repvit-medsam"],
            )
            self._client.log_artifacts(run_id, str(folder), "model")


def _gone(source: str) -> bool:
    """Return whether the local folder of a version is missing."""
    return source.startswith("file:") and not local_path(source).exists()


def _own_tags() -> dict[str, str]:
    return {PROCESS_TAG: str(os.getpid()), PLACE_TAG: json.dumps(process_note(this_process()))}


def _process_of(tags: Mapping[str, str]) -> Process | None:
    """Return the process in the tags of a run, or None if they name none."""
    number = tags.get(PROCESS_TAG, "")
    if not number.isdecimal():
        return None
    try:
        noted = read_process(parse_json(tags[PLACE_TAG].encode(), PLACE_TAG)) if PLACE_TAG in tags else None
    except IntegrityError:
        return None
    if noted is not None and noted.id == int(number):
        return noted
    return Process(int(number), birth(int(number)), None if noted is None else noted.place)


def registered_model(settings: Settings) -> str:
    """Return the name of a profile's registered model; scores of two profiles are on other data and not comparable."""
    return f"repvit-medsam-{settings.profile.name}"


def champion_uri(settings: Settings) -> str:
    """Return the MLflow URI of the model behind the alias."""
    return f"models:/{registered_model(settings)}@{CHAMPION}"


def download_model(uri: str, tracking_uri: str, to: Path) -> Path:
    """Download the model of an MLflow URI (`models:/repvit-medsam-real@champion`, `runs:/...`).

    Returns:
        The path of its safetensors file.

    Raises:
        FileNotFoundError: If no model has this URI, or it does not hold exactly one safetensors file.
        TrackingError: If the store cannot be used.
    """
    use_store(tracking_uri)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(to)))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(
            f"{uri}: expected a model in {shown(tracking_uri)}, found none: {first_line(error)}; name another "
            "model, or run full_pipeline to register one"
        ) from error
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
    if len(files) != 1:
        raise FileNotFoundError(
            f"{uri}: expected one .safetensors file, found {len(files)}; name another model"
            ", or run full_pipeline to write its files again"
        )
    return files[0]
