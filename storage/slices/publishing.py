"""Publishing slice stores: writing the manifest of all parts, and deleting blobs that the manifest does not list.

What belongs here: a store's manifest, which blobs may be deleted. Not here: writing parts (`storage.slices.writer`).
"""

from collections.abc import Sequence

from storage.base.blobs import Blobs
from storage.base.fingerprints import combine
from storage.shards.fragments import MANIFEST
from storage.shards.metadata import metadata_files
from storage.shards.parts import fragment_key
from storage.slices.config import STORE_VERSION
from storage.slices.layout import StoreLayout, load_layout
from storage.slices.manifest import SliceFragment, StoreManifest, slice_parts
from storage.slices.planned import PartEntry, plan_key, rows_key, same_parts
from storage.slices.writer import plan_replaced


def publish(root: Blobs, modality: str, plan: Sequence[PartEntry]) -> StoreManifest:
    """Publish a modality's parts: write array metadata, then the manifest; then delete blobs that it does not list.

    Args:
        root: Place of all stores.
        modality: Canonical modality name.
        plan: The whole recorded plan.

    Returns:
        The manifest.

    Raises:
        BusyError: If another process is planning, writing or publishing this store.
        StorageError: If the plan is not the recorded one.
        IntegrityError: If a part is missing.
    """
    group = root.below(modality)
    with group.exclusive(f"slice store {modality}"):
        # Read before the plan: if another process publishes a newer plan after this, its manifest is not replaced.
        before = group.read_version(MANIFEST)
        layout = load_layout(root, modality)
        if not same_parts(plan, layout.parts):
            raise plan_replaced(modality, f"{len(plan)} parts")
        parts = slice_parts(root, modality, layout.config)
        manifest = _manifest(modality, layout, parts.gather(layout.parts))
        parts.publish(manifest, metadata_of(manifest), before and before[1])
        _remove_unnamed(group, layout, manifest)
    return manifest


def metadata_of(manifest: StoreManifest) -> dict[str, bytes]:
    """Return the `zarr.json` files of a store, by key."""
    layouts = manifest.config.array_layouts()
    return metadata_files((layout, manifest.lengths[name]) for name, layout in layouts.items())


def _manifest(modality: str, layout: StoreLayout, fragments: tuple[SliceFragment, ...]) -> StoreManifest:
    arrays = layout.config.array_layouts()
    return StoreManifest(
        format_version=STORE_VERSION,
        fingerprint=combine([modality, *(f"{item.part_id} {item.fingerprint}" for item in fragments)]),
        fragments=fragments,
        modality=modality,
        config=layout.config,
        lengths={name: array.shard * layout.next_shard[name] for name, array in arrays.items()},
        next_part=layout.next_part,
    )


def _remove_unnamed(group: Blobs, layout: StoreLayout, manifest: StoreManifest) -> None:
    """Delete shards and parts that the manifest does not list and whose numbers its plan has used.

    On a place without locks another process may be writing parts of a newer plan already; their numbers are higher.
    """
    arrays = layout.config.array_layouts()
    named = {arrays[shard.array].key(shard.shard) for shard in manifest.shards()}
    for part in manifest.fragments:
        named |= {key(part.part_id) for key in (fragment_key, rows_key, plan_key)}
    limits = {f"{name}/c": layout.next_shard[name] for name in arrays}
    limits |= dict.fromkeys(("parts", "plan"), layout.next_part)
    for folder, limit in limits.items():
        for key in group.sizes(folder):
            if key not in named and _number(key) < limit:
                group.delete(key)
    group.sweep()


def _number(key: str) -> int:
    """Return the number in the key of a shard or part: `imgs/c/12`, `parts/part-00012-1a2b3c4d.json`."""
    name = key.rsplit("/", 1)[-1]
    return int(name.split("-")[1] if name.startswith("part-") else name)
