"""The executors. What belongs here: the actions of a run's main process before its first step.

Not here: how steps open the workspace (`pipelines.runs.resources`).
"""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from pipelines.base.settings import InputError, Settings
from pipelines.base.teacher_file import teacher_file
from pipelines.base.terminal import said_of
from pipelines.runs.dead_runs import end_dead_runs, note_executor
from pipelines.runs.turns import turn
from pipelines.tracking.store import TrackingError, require_tracking

if TYPE_CHECKING:
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig

logger = logging.getLogger(__name__)

TRACKED = {"medsam/mlflow": "logs"}
"""Tag of the steps that use MLflow: a run with such a step fails at its start if MLflow cannot be reached."""

TAUGHT = {"medsam/teacher": "reads its weights"}
"""Tag of the step that reads the teacher's weights: a run with this step fails at its start if there are none."""


def end_what_died(instance: dg.DagsterInstance, settings: Settings, this_run: str = "") -> None:
    """End runs whose process is gone, in Dagster and in MLflow."""
    if end_dead_runs(instance, settings.state / "runs", this_run):
        from pipelines.tracking.tracker import Tracker

        try:
            Tracker(settings).close_stale()
        except TrackingError as error:
            logger.warning("dead runs keep the status RUNNING in MLflow: %s", error)


class OneRunAtATime(dg.Executor):
    """Executes a run with another executor, after other runs of the same state folder have ended."""

    def __init__(self, inner: dg.Executor, settings: Settings) -> None:
        self._inner = inner
        self._settings = settings

    @property
    def retries(self) -> "RetryMode":
        """The retries of the inner executor."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> "StepDependencyConfig":
        """The configuration of the inner executor."""
        return self._inner.step_dependency_config

    def execute(
        self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan"
    ) -> Iterator[dg.DagsterEvent]:
        """Check what the steps need from outside, wait for other runs, end dead runs, then run the steps."""
        try:
            yield from self._execute(plan_context, execution_plan)
        except (InputError, TrackingError) as error:
            raise _refused(str(error), error) from None
        except OSError as error:
            raise _refused(f"{self._settings.state}: the run cannot go on: {said_of(error)}", error) from None

    def _execute(
        self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan"
    ) -> Iterator[dg.DagsterEvent]:
        settings, run_id = self._settings, plan_context.run_id
        note_executor(settings.state / "runs", run_id, in_process=True)
        if _has(execution_plan, TAUGHT):
            teacher_file(settings)
        if _has(execution_plan, TRACKED):
            require_tracking(settings.tracking_uri)
        end_what_died(plan_context.instance, settings, run_id)
        with turn(settings.state, run_id, plan_context.log.warning):
            # Again: runs that died while this one waited hold pool slots, too.
            end_what_died(plan_context.instance, settings, run_id)
            yield from self._inner.execute(plan_context, execution_plan)


def _refused(message: str, error: Exception) -> DagsterUserCodeProcessError:
    """Return what fails a run without a traceback: the message says everything that a user needs."""
    said = SerializableErrorInfo(message, [], type(error).__name__)
    return DagsterUserCodeProcessError(message, user_code_process_error_infos=[said])  # type: ignore[no-untyped-call]


def _has(execution_plan: "ExecutionPlan", tag: Mapping[str, str]) -> bool:
    """Return whether a run has a step with a tag."""
    return any(tag.items() <= (step.tags or {}).items() for step in execution_plan.get_all_steps_in_topo_order())


def executor_of(settings: Settings) -> dg.ExecutorDefinition:
    """Return the executor of the settings: all steps in one process, or one process for each step."""
    if settings.executor == "in_process":
        inner = dg.in_process_executor
    else:
        inner = dg.multiprocess_executor.configured({"max_concurrent": 2})

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        return OneRunAtATime(inner.executor_creation_fn(context), settings)  # type: ignore[misc]  # built-ins have one

    return dg.ExecutorDefinition(
        name=inner.name,
        config_schema=inner.config_schema,  # type: ignore[arg-type]  # as resolved by `configured`
        requirements=None if settings.executor == "in_process" else dg.multiple_process_executor_requirements(),
        executor_creation_fn=create,
    )
