"""The check that reads a teacher cache byte by byte. What belongs here: the graph's node, no work."""

import dagster as dg

from pipelines.base.values import CacheRef
from pipelines.runs.resources import WorkspaceResource
from pipelines.teacher import cache_verification
from pipelines.teacher.cache_asset import CacheAsset


def byte_check(cache: CacheAsset) -> dg.AssetChecksDefinition:
    """Return the check that compares every byte with the manifest."""

    @dg.asset_check(
        asset=cache.key,
        name="is_whole",
        description="Every byte of the cache is what its manifest vouches for; reads the whole cache.",
    )
    def whole(
        context: dg.AssetCheckExecutionContext, workspace: WorkspaceResource, answers: CacheRef
    ) -> dg.AssetCheckResult:
        if answers.mode != "cached":
            return dg.AssetCheckResult(passed=True, description="nothing is cached")
        names = {answers.cache[:16]}
        damaged = cache_verification.verify_caches(workspace.open(), context.log.info, repair=False, names=names)
        listing = "\n".join(f"- {item.file}: {item.problem}" for item in damaged[:200])
        return dg.AssetCheckResult(
            passed=not damaged, metadata={"damaged": len(damaged), "damages": dg.MetadataValue.md(listing or "none")}
        )

    return whole
