"""Passing values between steps as small JSON files, never as pickles.

What belongs here: the IO manager. Not here: the values and their JSON (`pipelines.base.values`).
"""

from pathlib import Path

import dagster as dg

from pipelines.base.values import read_content, read_value, to_json, travelling
from storage.base.atomic import write_json


class JsonIOManager(dg.ConfigurableIOManager):
    """Keeps the value of each asset, and the output of each step of a run, in one JSON file.

    The next materialisation of an asset overwrites its file. So any single asset can be materialised from the page,
    with the latest values of its upstream assets. The file of a step lies in a folder of its run.
    """

    folder: str

    def _path(self, context: dg.OutputContext | dg.InputContext) -> Path:
        parts = context.get_identifier() if not context.has_asset_key else ["assets", *context.asset_key.path]
        return Path(self.folder).joinpath(*parts).with_suffix(".json")

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write a value."""
        if obj is None:
            return
        try:
            write_json(self._path(context), to_json(obj))
        except (TypeError, ValueError) as error:
            message = f"expected a plain JSON value from {context.name}, found {type(obj).__name__}: {error}"
            raise TypeError(message) from error

    def load_input(self, context: dg.InputContext) -> object:
        """Read a value as the type that the input's annotation names.

        Raises:
            FileNotFoundError: If the value was never made.
            IntegrityError: If the file is damaged or holds a value of another type.
        """
        upstream = context.upstream_output
        path = self._path(upstream if upstream is not None else context)
        name = context.asset_key.to_user_string() if context.has_asset_key else context.name
        if not path.is_file():
            raise FileNotFoundError(f"expected the value of {name} in {path}, found none; materialise {name} first")
        kind = travelling(context.dagster_type.typing_type)
        return read_content(path, name) if kind is None else read_value(kind, path, name)
