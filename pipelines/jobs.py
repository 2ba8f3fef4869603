"""Jobs and schedules. What belongs here: which assets run together and when. Not here: the assets."""

import dagster as dg

from pipelines.base.variants import ABLATIONS, PROPOSED
from pipelines.evaluation import assets as evaluation
from pipelines.evaluation import report_assets as reports
from pipelines.ingest import assets as ingest
from pipelines.teacher import assets as teacher
from pipelines.training import assets as students

_QUIET = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
"""What the terminal shows; the page keeps every event."""

_ABLATION_KEYS = dg.AssetSelection.key_prefixes(*[[variant.name] for variant in ABLATIONS])
_ABLATIONS_ONLY = _ABLATION_KEYS | dg.AssetSelection.assets(*reports.ABLATION_ASSETS)
_REGISTERED = dg.AssetSelection.assets(reports.registered_model_report)

_EVERY_BYTE = dg.AssetSelection.checks(*ingest.STORE_CHECKS)

_RECOMPUTED = dg.AssetSelection.checks(*teacher.CHECKS)

ingest_job = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets(*ingest.ASSETS) - _EVERY_BYTE,
    config=_QUIET,
    description="From the folder of npz files to slice stores, index, release and pixel statistics.",
)

full_pipeline = dg.define_asset_job(
    "full_pipeline",
    selection=dg.AssetSelection.all() - _ABLATIONS_ONLY - _REGISTERED - _EVERY_BYTE - _RECOMPUTED,
    config=_QUIET,
    description=f"Everything for the variant `{PROPOSED.name}`: ingest, teacher, both stages, evaluation.",
)

ablations = dg.define_asset_job(
    "ablations",
    selection=dg.AssetSelection.all() - _REGISTERED - _EVERY_BYTE - _RECOMPUTED,
    config=_QUIET,
    description="All variants, and the table that compares them as the paper's Table 4 does.",
)

reevaluate = dg.define_asset_job(
    "reevaluate",
    selection=_REGISTERED,
    config=_QUIET,
    description="Score the model behind the registry's `champion` alias on the newest release.",
)

verify_stores = dg.define_asset_job(
    "verify_stores",
    selection=_EVERY_BYTE,
    config=_QUIET,
    description="Compare every byte of every slice store with its manifest; `medsam verify --repair` mends.",
)

verify_caches = dg.define_asset_job(
    "verify_caches",
    selection=dg.AssetSelection.checks(*teacher.PROPOSED_CHECKS),
    config=_QUIET,
    description=f"Read the caches of `{PROPOSED.name}` byte by byte, and ask the teacher again about random slots.",
)

nightly_reevaluation = dg.ScheduleDefinition(
    name="nightly_reevaluation",
    job=reevaluate,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC; off until switched on.",
)

JOBS = [ingest_job, full_pipeline, ablations, reevaluate, verify_stores, verify_caches]
SCHEDULES = [nightly_reevaluation]

ASSETS = [*ingest.ASSETS, *teacher.ASSETS, *students.ASSETS, *evaluation.ASSETS, *reports.ASSETS]
CHECKS = [*ingest.CHECKS, *teacher.CHECKS, *evaluation.CHECKS]
