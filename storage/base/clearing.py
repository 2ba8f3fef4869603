"""Making a damaged artefact's folder one that its maker can go on with. What belongs here: removing.

Not here: finding damage (`storage.base.finished`), making again. Links are removed, never what they lead to.
"""

from fnmatch import fnmatch
from pathlib import Path

from storage.base.atomic import remove
from storage.base.file_records import differing_files
from storage.base.finished import OWN, always, lasting_files, read_listing


def clear_damaged(folder: Path) -> list[str]:
    """Turn a damaged folder into unfinished work that its maker can resume.

    Damaged files and files without a record are removed; every kept file was compared byte for byte. If an inseparable
    file is damaged, no file is kept.

    Returns:
        Paths of the files that are kept.
    """
    records, inseparable = read_listing(folder)
    problems = differing_files(folder, records, always)
    lost = any(fnmatch(name, pattern) for name in problems for pattern in inseparable)
    kept = set() if lost else records.keys() - problems.keys()
    unwanted = [name for name in lasting_files(folder) if name not in kept]
    for name in [*unwanted, *problems, *OWN]:
        remove(folder / name)
    return sorted(kept)


def make_room(folder: Path) -> None:
    """Remove what lies where a folder is to be made and is none: a file, or a link to no folder."""
    if not folder.is_dir():
        remove(folder)
