"""The teacher's answers for a training plan, read in plan order.

What belongs here: reading such a cache. Not here: writing it (`storage.answers.cache_writer`), its plan
(`storage.answers.cache_plan`), encoding values (`storage.answers.encodings`).

Axis 0 of every array is the slot in plan order, so training reads a cache from front to back. `header.json` records the
inputs of the answers. Each part is committed by its fragment, written last; `manifest.json` publishes all parts.
`docs/store_format.md` describes the files for readers without this code.
"""

from collections.abc import Iterator, Mapping

from storage.answers.cache_manifest import HEADER, REMEDY, cache_name, load_cache_manifest, read_sealed
from storage.answers.cache_plan import CacheSpec, as_stored
from storage.answers.encodings import Floats
from storage.base.blobs import Blobs
from storage.base.errors import StorageError
from storage.base.fingerprints import require_same
from storage.shards.arrays import Elements
from storage.shards.reader import ShardReader


class TeacherCache:
    """Reads a published cache; each process opens the files at its first read. May be pickled.

    Attributes:
        spec: The specification of the cache.
        fingerprint: Fingerprint of all its parts together.
    """

    def __init__(
        self, root: Blobs, made_from: Mapping[str, object] | None = None, *, fingerprint: str | None = None
    ) -> None:
        """Open a cache.

        Args:
            root: Place of the cache.
            made_from: The inputs that the caller expects; None accepts any.
            fingerprint: The expected fingerprint, which covers the content of every slot; None accepts any.

        Raises:
            StorageError: If the cache is not published, or another version of this project wrote it.
            FingerprintMismatchError: If the cache was made from other inputs.
        """
        manifest = load_cache_manifest(root)
        header, name = read_sealed(root, HEADER), cache_name(root)
        if made_from is not None:
            require_same(name, as_stored(made_from), header["made_from"], REMEDY)
        if fingerprint is not None:
            require_same(name, {"slots": fingerprint}, {"slots": manifest.fingerprint}, REMEDY)
        self.spec = CacheSpec.from_header(header)
        self.fingerprint = manifest.fingerprint
        self._reader = ShardReader(root, list(self.spec.layouts().values()), manifest.fragments, REMEDY)

    def __len__(self) -> int:
        return self.spec.n_slots

    def read(self, name: str, start: int, stop: int) -> Floats:
        """Return the answers of slots `start:stop` in plan order, (stop - start, *tail) float32.

        Raises:
            IndexError: If the cache does not have these slots.
            StorageError: If the cache has no such array.
            IntegrityError: If bytes are missing or fail their checksum.
        """
        if name not in self.spec.arrays:
            raise StorageError(f"teacher cache: expected one of {sorted(self.spec.arrays)}, found {name!r}")
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"slots: expected a range within 0 to {len(self)}, found {start} to {stop}")
        array = self.spec.arrays[name]
        codec = array.codec()
        return codec.decode(_Components(self._reader, name, tuple(codec.components(array.tail)), start, stop))


class _Components(Mapping[str, Elements]):
    """The stored components of some slots; each is read at its first use, since a decoder may not need all of them."""

    def __init__(self, reader: ShardReader, name: str, suffixes: tuple[str, ...], start: int, stop: int) -> None:
        self._reader, self._name, self._suffixes, self._start, self._stop = reader, name, suffixes, start, stop

    def __getitem__(self, suffix: str) -> Elements:
        return self._reader.read(self._name + suffix, self._start, self._stop)

    def __iter__(self) -> Iterator[str]:
        return iter(self._suffixes)

    def __len__(self) -> int:
        return len(self._suffixes)
