"""How values travel between steps: small JSON files, never pickles. What belongs here: the IO manager, nothing else."""

from pathlib import Path
from typing import Any

import dagster as dg

from storage.base.atomic import read_json, write_json


class JsonIOManager(dg.ConfigurableIOManager):
    """Keeps each asset's value, and each step's output inside a run, as one JSON file.

    An asset's file is overwritten by its next materialisation, so that any asset can be made alone from the page on
    what its upstream assets last were. A step's file lies under its run.
    """

    folder: str

    def _path(self, context: dg.OutputContext | dg.InputContext) -> Path:
        parts = context.get_identifier() if not context.has_asset_key else ["assets", *context.asset_key.path]
        return Path(self.folder).joinpath(*parts).with_suffix(".json")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:  # noqa: ANN401
        """Write a plain value."""
        if obj is None:
            return
        try:
            write_json(self._path(context), obj)
        except (TypeError, ValueError) as error:
            message = f"expected a plain JSON value from {context.name}, found {type(obj).__name__}: {error}"
            raise TypeError(message) from error

    def load_input(self, context: dg.InputContext) -> Any:  # noqa: ANN401
        """Read a plain value."""
        upstream = context.upstream_output
        path = self._path(upstream if upstream is not None else context)
        if not path.is_file():
            name = context.asset_key.to_user_string() if context.has_asset_key else context.name
            raise FileNotFoundError(f"expected the value of {name} in {path}, found none; materialise {name} first")
        return read_json(path)
