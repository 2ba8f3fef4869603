"""Area of the surface inside one cell of voxel centres, for each way its corners can be filled.

What belongs here: geometry of the unit cell. Not here: masks, distances or scores, which are `metrics`.

A cell is the cube between eight neighbouring voxel centres. Its code has bit `4 z + 2 y + x` set where the corner
(z, y, x) lies inside the object, so code 0 is outside, code 255 inside, and every other code holds a piece of surface.
The surface is that of marching cubes (Lorensen and Cline 1987) with vertices at the middle of the cell's edges and two
rules where the corners leave a choice:

- a face with two opposite corners inside is ambiguous: the corners of the cell's minority are cut off from each other,
  so that a code and its complement have the same area (where there are four of either, both choices come to the same);
- a polygon that is not flat is divided into the triangles that have the largest total area in the unit cell. All the
  divisions that reach this largest area have the same areas in every other cell as well.

Derived from these rules, the 256 areas are those of DeepMind's surface-distance, which the challenge scores with.
Areas, not shapes, are what counts, so orientation is never tracked.
"""

from collections import defaultdict
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

Point = tuple[float, float, float]
Edge = tuple[int, int]

_CORNERS: tuple[tuple[int, int, int], ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))
_FACES: tuple[tuple[int, ...], ...] = tuple(
    tuple(corner for corner in range(8) if _CORNERS[corner][axis] == side) for axis in range(3) for side in (0, 1)
)


@lru_cache(maxsize=256)
def surfel_areas(spacing: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Return the (256,) surface areas of a cell's codes, read-only, in the square of the spacing's unit.

    Args:
        spacing: Distance of neighbouring voxel centres along each array axis, > 0.
    """
    first, second, third = spacing
    scale = np.array([second * third, first * third, first * second])
    areas = np.zeros(256)
    for code, normals in enumerate(_unit_normals()):
        areas[code] = np.linalg.norm(normals * scale, axis=1).sum()
    areas.flags.writeable = False
    return areas


def contour_lengths(spacing: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Return the (16,) contour lengths of a square cell's codes, bit `2 y + x`, in the spacing's unit.

    Marching squares with vertices at the middle of the edges; two opposite corners are cut off from each other.

    Args:
        spacing: Distance of neighbouring pixel centres along each array axis, > 0.
    """
    rows, columns = spacing
    diagonal = float(np.hypot(rows, columns)) / 2
    lengths = np.full(16, diagonal)
    lengths[[0b0000, 0b1111]] = 0.0
    lengths[[0b0110, 0b1001]] = 2 * diagonal
    lengths[[0b0011, 0b1100]] = columns
    lengths[[0b0101, 0b1010]] = rows
    return lengths


@lru_cache(maxsize=1)
def _unit_normals() -> tuple[npt.NDArray[np.float64], ...]:
    """Return per code the (T, 3) normals of its triangles; a normal is as long as its triangle's area."""
    tables = []
    for code in range(256):
        triangles = [normal for polygon in _polygons(code) for normal in _largest_division(polygon)[1]]
        tables.append(np.array(triangles).reshape(-1, 3))
    return tuple(tables)


def _polygons(code: int) -> list[list[Point]]:
    """Return the closed polygons in which the surface crosses the cell, as middles of the edges it passes."""
    neighbours = _crossings(code)
    polygons = []
    while neighbours:
        start, (following, _) = next(iter(neighbours.items()))
        loop = [start]
        while following != start:
            loop.append(following)
            before, after = neighbours[following]
            following = before if after == loop[-2] else after
        for edge in loop:
            del neighbours[edge]
        polygons.append([_middle(edge) for edge in loop])
    return polygons


def _crossings(code: int) -> dict[Edge, list[Edge]]:
    """Return, for each cell edge the surface crosses, the two edges it goes on to over the faces beside it."""
    inside = [bool(code >> corner & 1) for corner in range(8)]
    minority = sum(inside) <= 4
    neighbours: dict[Edge, list[Edge]] = defaultdict(list)
    for face in _FACES:
        crossed = [edge for edge in combinations(face, 2) if _is_edge(edge) and inside[edge[0]] != inside[edge[1]]]
        if len(crossed) == 4:
            cut_off = [corner for corner in face if inside[corner] == minority]
            pairs = [[edge for edge in crossed if corner in edge] for corner in cut_off]
        else:
            pairs = [crossed] if crossed else []
        for one, other in pairs:
            neighbours[one].append(other)
            neighbours[other].append(one)
    return dict(neighbours)


def _is_edge(pair: Edge) -> bool:
    return (pair[0] ^ pair[1]).bit_count() == 1


def _middle(edge: Edge) -> Point:
    one, other = (_CORNERS[corner] for corner in edge)
    return ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2, (one[2] + other[2]) / 2)


def _largest_division(polygon: list[Point]) -> tuple[float, list[Point]]:
    """Return the largest total area of the polygon's triangles over all its divisions, and their normals."""
    if len(polygon) < 3:
        return 0.0, []
    best_area, best_normals = -1.0, list[Point]()
    for apex in range(1, len(polygon) - 1):
        normal = _normal(polygon[0], polygon[apex], polygon[-1])
        left_area, left = _largest_division(polygon[: apex + 1])
        right_area, right = _largest_division(polygon[apex:])
        area = float(np.linalg.norm(normal)) + left_area + right_area
        if area > best_area:
            best_area, best_normals = area, [normal, *left, *right]
    return best_area, best_normals


def _normal(a: Point, b: Point, c: Point) -> Point:
    """Return the normal of a triangle, half the cross product of two sides."""
    u, v = ([end - start for start, end in zip(a, far, strict=True)] for far in (b, c))
    return (
        (u[1] * v[2] - u[2] * v[1]) / 2,
        (u[2] * v[0] - u[0] * v[2]) / 2,
        (u[0] * v[1] - u[1] * v[0]) / 2,
    )
