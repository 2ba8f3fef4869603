"""Reading slice stores: all accepted slices of a modality at native resolution, in three sharded zarr arrays.

What belongs here: reading slices by offset. Not here: planning (`storage.slices.store_plan`), writing
(`storage.slices.writer`), the byte format (`storage.shards.codec`).

`docs/store_format.md` describes the files for readers without this code.
"""

import numpy as np
import numpy.typing as npt

from storage.base.blobs import Blobs
from storage.shards.open_shards import OpenShards
from storage.shards.reader import ShardReader
from storage.slices.label_statistics import LabelMap
from storage.slices.manifest import load_manifest


class SliceStore:
    """Reads slices of published stores by their element offsets.

    A store is opened at its first read; a pickled copy opens its own.
    """

    def __init__(self, root: Blobs) -> None:
        self.root = root
        self._readers: dict[str, ShardReader] = {}
        self._opened = OpenShards()

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "_readers": {}, "_opened": OpenShards()}

    def open(self, modality: str) -> ShardReader:
        """Return the reader of one modality's arrays.

        Raises:
            StorageError: If the modality is not published.
        """
        if modality not in self._readers:
            manifest = load_manifest(self.root, modality)
            layouts = list(manifest.config.array_layouts().values())
            remedy = f"make the slice store of {modality} again"
            group = self.root.below(modality)
            self._readers[modality] = ShardReader(group, layouts, manifest.fragments, remedy, self._opened)
        return self._readers[modality]

    def read(
        self, modality: str, img_offset: int, shape: tuple[int, ...], gt_array: str, gt_offset: int
    ) -> tuple[npt.NDArray[np.uint8], LabelMap | None]:
        """Return a slice and its label ids.

        Args:
            modality: Canonical modality name.
            img_offset: First element in `imgs`.
            shape: (H, W) or (H, W, 3), native pixels.
            gt_array: `gts_u8`, `gts_u16`, or empty without labels.
            gt_offset: First element in `gt_array`.

        Returns:
            The image, `shape` uint8, and the label ids, (H, W) uint8 or uint16, or None.

        Raises:
            StorageError: If the modality is not published.
            IntegrityError: If bytes are missing, fail their checksum, or lie in a shard missing from the manifest.
        """
        reader = self._readers.get(modality) or self.open(modality)
        pixels = shape[0] * shape[1]
        size = pixels if len(shape) == 2 else pixels * shape[2]
        image = reader.read("imgs", img_offset, img_offset + size).reshape(shape)
        if not gt_array:
            return image, None
        return image, reader.read(gt_array, gt_offset, gt_offset + pixels).reshape(shape[:2])
