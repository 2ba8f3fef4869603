"""Assets from npz files to pixel statistics. What belongs here: the graph's nodes and their descriptions, no work."""

from collections.abc import Iterator

import dagster as dg

from pipelines.base.results import markdown_table, materialised
from pipelines.base.values import StorePartsMade, StoreRef
from pipelines.ingest import releases, scanning, store_care
from pipelines.ingest import tasks as ingest
from pipelines.runs.resources import WorkspaceResource
from storage.base.modalities import MODALITIES
from storage.base.references import ArtefactRef

RETRY = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL)
"""For steps that write parts and publish them: a passing fault costs one part, and another process at work a wait."""


@dg.asset(group_name="ingest", kinds={"parquet"})
def raw_manifest(context: dg.AssetExecutionContext, workspace: WorkspaceResource) -> dg.Output[ArtefactRef]:
    """Every npz file of the source: content hash, modality, case, patient, accepted or rejected with a reason."""
    space = workspace.open()
    return materialised(
        context.op_execution_context, space, "raw_manifest", scanning.scan_source(space, context.log.info)
    )


def _slice_store(modality: str) -> dg.AssetsDefinition:
    name = f"slice_store/{modality}"

    @dg.op(name=f"plan_{modality}", out=dg.DynamicOut(list), ins={"manifest": dg.In(ArtefactRef)})
    def plan(workspace: WorkspaceResource, manifest: ArtefactRef) -> Iterator[dg.DynamicOutput[list[str]]]:
        for number, batch in enumerate(ingest.plan_store(workspace.open(), modality, manifest)):
            yield dg.DynamicOutput(batch, mapping_key=f"batch_{number:04d}")

    @dg.op(name=f"write_{modality}", retry_policy=RETRY)
    def write(context: dg.OpExecutionContext, workspace: WorkspaceResource, part_ids: list[str]) -> StorePartsMade:
        return ingest.write_store_parts(workspace.open(), modality, part_ids, context.log.info)

    @dg.op(name=f"publish_{modality}", ins={"manifest": dg.In(ArtefactRef)}, retry_policy=RETRY)
    def publish(
        context: dg.OpExecutionContext,
        workspace: WorkspaceResource,
        manifest: ArtefactRef,
        written: list[StorePartsMade],
    ) -> dg.Output[StoreRef]:
        space = workspace.open()
        return materialised(
            context, space, name, ingest.publish_store(space, modality, manifest, written, context.log.info)
        )

    @dg.graph_asset(
        key=["slice_store", modality],
        group_name="slice_store",
        ins={"manifest": dg.AssetIn("raw_manifest")},
        kinds={"zarr"},
        description=f"{modality}: every accepted slice at native resolution in a sharded zarr v3 store, "
        "written part by part; unchanged parts are kept.",
    )
    def store(manifest: ArtefactRef) -> StoreRef:
        return publish(manifest, plan(manifest).map(write).collect())  # type: ignore[no-any-return]

    return store


def _whole(modality: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=["slice_store", modality],
        name="is_whole",
        description="Every byte of the store is what its manifest vouches for; reads the whole store.",
    )
    def whole(context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource) -> dg.AssetCheckResult:
        damages = store_care.verify_stores(workspace.open(), [modality], context.log.info)
        listing = dg.MetadataValue.md(markdown_table(damages.head(200)))
        return dg.AssetCheckResult(passed=damages.empty, metadata={"damaged": len(damages), "damages": listing})

    return whole


slice_stores: list[dg.AssetsDefinition] = [_slice_store(modality) for modality in MODALITIES]


@dg.asset(
    group_name="ingest",
    kinds={"parquet"},
    ins={modality: dg.AssetIn(["slice_store", modality], dagster_type=StoreRef) for modality in MODALITIES},
)
def slice_index(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, raw_manifest: ArtefactRef, **stores: StoreRef
) -> dg.Output[ArtefactRef]:
    """One row per slice: where it lies, what it shows, whose it is; and the modality index over it."""
    space = workspace.open()
    result = ingest.make_index(space, raw_manifest, [stores[modality] for modality in MODALITIES])
    return materialised(context.op_execution_context, space, "slice_index", result)


@dg.asset(group_name="ingest", kinds={"parquet"})
def dataset_release(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, slice_index: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """A frozen, content-hashed choice of slices with ground truth, each patient in one recorded split."""
    space = workspace.open()
    result = releases.freeze_release(space, slice_index, context.log.info)
    return materialised(context.op_execution_context, space, "dataset_release", result)


@dg.asset_check(asset=dataset_release, blocking=True)
def no_leakage(dataset_release: ArtefactRef) -> dg.AssetCheckResult:
    """No patient and no identical content lies in two splits."""
    leaks = dataset_release.info["leaks"]
    return dg.AssetCheckResult(passed=not leaks, metadata={"leaks": "\n".join(leaks) or "none"})


@dg.asset_check(asset=dataset_release, blocking=True)
def train_folders_only_train(dataset_release: ArtefactRef) -> dg.AssetCheckResult:
    """No case of a folder that only trains selects or tests a model."""
    strays = dataset_release.info.get("strays", [])
    return dg.AssetCheckResult(passed=not strays, metadata={"held out": "\n".join(strays) or "none"})


@dg.asset(group_name="ingest", kinds={"numpy"})
def pixel_statistics(
    context: dg.AssetExecutionContext, workspace: WorkspaceResource, dataset_release: ArtefactRef
) -> dg.Output[ArtefactRef]:
    """Mean and standard deviation by channel over the training split, every modality counting alike."""
    space = workspace.open()
    result = releases.measure_pixels(space, dataset_release)
    return materialised(context.op_execution_context, space, "pixel_statistics", result)


ASSETS = [raw_manifest, *slice_stores, slice_index, dataset_release, pixel_statistics]
STORE_CHECKS = [_whole(modality) for modality in MODALITIES]
"""They read every byte, so they run when they are asked for and not with every materialisation."""

CHECKS = [no_leakage, train_folders_only_train, *STORE_CHECKS]
