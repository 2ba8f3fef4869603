"""The outcome of every file of a folder. What belongs here: counting, reporting refused files, the closing line.

Not here: reading or predicting. An error of one case refuses only this case; an error that all cases would have, such
as a full disk, ends the command.
"""

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pandas as pd

from pipelines.base.terminal import printable, said_of
from storage.base.errors import BadSampleError, IntegrityError

_OF_ONE_FILE: Final = {
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ELOOP,
}
"""Errors of writing that are caused by the name of one file, or by an existing file or folder of that name."""

_OTHER_ENCODING: Final = re.compile(r"\\udc[0-9a-f]{2}")
"""The escape of a byte that is not UTF-8, in names of a listing."""

_SHOWN: Final = 200
"""Most characters of the names of skipped files that are shown for each reason."""

_NO_MEMORY: Final = re.compile(r"out of memory|allocate memory|not enough memory", re.IGNORECASE)


class Tally:
    """Counts the files of one command by their outcome."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Begin with nothing found; `layout` says what to do about arrays of a case that lie in several files.

        Args:
            log: Receives refusals.
        """
        self.done = 0
        self.layout = ""
        self._log = log
        self._skipped: Counter[str] = Counter()
        self._rows: list[dict[str, str | int]] = []

    def skip(self, reason: str, files: list[str], count: int | None = None) -> None:
        """Record files that this command does not use; `count` is their number if `files` names only some of them."""
        if files:
            self._skipped[reason] += len(files) if count is None else count
            self._rows += [self._row(file, "skipped", reason) for file in files]

    def skip_listed(self, skipped: pd.DataFrame) -> None:
        """Record the files that a source skipped: reason, count, examples."""
        for row in skipped.to_dict("records"):
            self._log(f"skipped {printable(str(row['examples']))[:_SHOWN]}: {row['reason']}")
            self.skip(str(row["reason"]), [str(row["examples"])], int(row["count"]))

    def refuse(self, file: str, code: str, message: str) -> None:
        """Record and log a file that cannot be used, with the reason."""
        if _OTHER_ENCODING.search(file):
            message = "expected a name in UTF-8, found bytes of another encoding; rename the file"
        self._log(f"refused {printable(file)}: {code}: {message}")
        self._rows.append(self._row(file, "refused", f"{code}: {message}"))

    @contextmanager
    def refusing(self, file: str) -> Iterator[None]:
        """Refuse the file and leave the block on an error that concerns only this file.

        Raises:
            OSError: If all files would have this error, such as a full disk.
        """
        try:
            yield
        except BadSampleError as error:
            self.refuse(file, error.code, str(error))
        except IntegrityError as error:
            self.refuse(file, "prediction", str(error))
        except MemoryError:
            self.refuse(
                file, "memory", "expected less than the free memory, found more; give it more, or a smaller case"
            )
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            self.refuse(file, "output", said_of(error))
        except RuntimeError as error:
            # torch has no exception type of its own for this; only the message says that memory is lacking
            if not _NO_MEMORY.search(str(error)):
                raise
            self.refuse(file, "memory", f"{str(error).splitlines()[0]}; give it more memory, or a smaller case")

    @property
    def refused(self) -> int:
        """The number of refused files."""
        return sum(row["outcome"] == "refused" for row in self._rows)

    def line(self, verb: str) -> str:
        """Return the closing line: the number of files found, and of each outcome."""
        n_skipped = sum(self._skipped.values())
        reasons = ", ".join(f"{printable(reason)}: {count}" for reason, count in sorted(self._skipped.items()))
        parts = [f"{self.done} {verb}", f"{n_skipped} skipped{f' ({reasons})' if reasons else ''}"]
        parts.append(f"{self.refused} refused{' (named above)' if self.refused else ''}")
        return f"{self.done + n_skipped + self.refused} files found: {', '.join(parts)}"

    def table(self) -> pd.DataFrame:
        """Return the files that were not used: file, outcome (skipped, refused), reason."""
        return pd.DataFrame(self._rows, columns=["file", "outcome", "reason"])

    @staticmethod
    def _row(file: str, outcome: str, reason: str) -> dict[str, str | int]:
        return {"file": file.encode("utf-8", "backslashreplace").decode(), "outcome": outcome, "reason": reason}
