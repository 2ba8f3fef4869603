"""The picture of the rooms is what the imports say, and no room imports one that stands on it."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DRAWING = Path(__file__).parents[2] / "docs" / "draw_rooms.py"


@pytest.fixture(scope="module")
def drawing() -> dict[str, Any]:
    return runpy.run_path(str(DRAWING))


def test_the_picture_is_up_to_date(drawing: dict[str, Any]) -> None:
    rooms, arrows = drawing["rooms_and_arrows"]()
    drawn = drawing["draw"](rooms, arrows)
    assert (DRAWING.parent / "rooms.svg").read_text() == drawn, "run python docs/draw_rooms.py"


def test_every_import_between_rooms_is_an_arrow(drawing: dict[str, Any]) -> None:
    rooms, arrows = drawing["rooms_and_arrows"]()
    titles = re.findall(r"<title>(\S+) imports (\S+)</title>", drawing["draw"](rooms, arrows))
    assert sorted(titles) == sorted(arrows)
    assert ("storage.releases", "storage.slices") in arrows
    assert ("pipelines.evaluation", "pipelines.base") in arrows
    assert {room.name for room in rooms} >= {"storage.base", "pipelines.ingest", "medsam_core.models"}


def test_within_a_package_every_arrow_runs_to_the_right(drawing: dict[str, Any]) -> None:
    rooms, arrows = drawing["rooms_and_arrows"]()
    order = [room.name for room in rooms]
    package: Callable[[str], str] = lambda name: name.partition(".")[0]  # noqa: E731
    back = [
        pair for pair in arrows if package(pair[0]) == package(pair[1]) and order.index(pair[0]) > order.index(pair[1])
    ]
    assert back == []
