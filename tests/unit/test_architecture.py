"""Rules of the house that no linter knows."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("medsam_core", "pipelines", "storage")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MOST_STATEMENTS = 15
"""Of an asset's body: it unpacks, calls one function, and returns what the page shows."""

DECORATORS = {"asset", "asset_check", "graph_asset", "op", "multi_asset", "sensor", "schedule"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dagster_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield the functions that a `@dg.…` decorator makes part of the graph."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            called = [item.func if isinstance(item, ast.Call) else item for item in node.decorator_list]
            if any(isinstance(item, ast.Attribute) and item.attr in DECORATORS for item in called):
                yield node


def n_statements(function: ast.FunctionDef) -> int:
    """Count the statements of a body, nested ones too, but for its docstring."""
    count = sum(isinstance(node, ast.stmt) for part in function.body for node in ast.walk(part))
    return count - (ast.get_docstring(function) is not None)


def future_annotations(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in ast.walk(tree)
    )


def test_the_counting_sees_what_it_is_meant_to_see() -> None:
    lines = "\n".join(f"    x{n} = {n}" for n in range(MOST_STATEMENTS))
    source = f'@dg.asset(key="a")\ndef long():\n    """Doc."""\n{lines}\n    return 1\ndef plain():\n    pass\n'
    (found,) = dagster_functions(ast.parse(source))
    assert (found.name, n_statements(found)) == ("long", MOST_STATEMENTS + 1)
    assert future_annotations(ast.parse("from __future__ import annotations"))
    assert not future_annotations(ast.parse("from __future__ import division"))


def test_bodies_of_assets_are_short() -> None:
    found = {
        f"{name_of(path)}:{function.name}": n_statements(function)
        for path in sorted((ROOT / "pipelines").glob("*/*assets.py"))
        for function in dagster_functions(ast.parse(path.read_text()))
    }
    assert len(found) > 15, "the assets have moved: look for them where they are"
    assert {name: count for name, count in found.items() if count > MOST_STATEMENTS} == {}


def test_no_module_of_pipelines_postpones_its_annotations() -> None:
    """Dagster reads the annotations of assets, which a postponed one hides."""
    modules = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "pipelines"]
    assert len(modules) > 20
    assert [name_of(path) for path in modules if future_annotations(ast.parse(path.read_text()))] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_opens_by_saying_what_it_is_for(package: str) -> None:
    modules = [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
    assert modules
    docstrings = {name_of(path): ast.get_docstring(ast.parse(path.read_text())) or "" for path in modules}
    assert [name for name, text in docstrings.items() if len(text) < 15] == []
    silent = [name for name, text in docstrings.items() if "belongs here" not in text.lower()]
    assert [name for name in silent if not name.endswith("__init__.py")] == []


DOCUMENTS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
FILES = {"csv", "json", "jsonl", "parquet"}
"""Endings by which a dotted name is a file's, not a module's."""
SETTINGS = {"source.kind"}
"""Of profiles, whose first word is a module's name too."""


def dotted_names(text: str) -> Iterator[str]:
    """Yield the names in backticks that have a dot and begin with a package, a room or a module."""
    known = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}
    for name in re.findall(r"`([a-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?`", text):
        first, *_, last = name.split(".")
        if first in known and last not in FILES and name not in SETTINGS:
            yield name


def names_in(tree: ast.AST) -> set[str]:
    """Return what a module defines: functions, classes, and every variable and attribute that it sets."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return found | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


def exists(name: str, folder: Path = ROOT) -> bool:
    """Return whether a dotted name, read from a folder, is a room, a module or a name that a module defines."""
    parts = name.split(".")
    if folder.joinpath(*parts).is_dir():
        return True
    for count in range(len(parts), 0, -1):
        module = folder.joinpath(*parts[:count]).with_suffix(".py")
        if module.is_file():
            return set(parts[count:]) <= names_in(ast.parse(module.read_text()))
    return False


def unknown_names(path: Path) -> list[str]:
    """Return the dotted names of docstrings that exist neither from the root nor from the module's own folder."""
    nodes = ast.walk(ast.parse(path.read_text()))
    values = [node.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    texts = [value.value for value in values if isinstance(value.value, str)]
    return [name for text in texts for name in dotted_names(text) if not exists(name) and not exists(name, path.parent)]


def test_the_search_for_names_sees_what_it_is_meant_to_see(tmp_path: Path) -> None:
    assert list(dotted_names("`storage.shards.codec`, `mlflow.pyfunc`, `codec.crc32c`, `manifest.json`")) == [
        "storage.shards.codec",
        "codec.crc32c",
    ]
    assert exists("storage.shards")
    assert exists("storage.shards.codec.ShardEncoder.add")
    assert not exists("storage.shards.gone")
    assert not exists("storage.shards.codec.gone")
    assert not exists("codec.crc32c")
    assert exists("codec.crc32c", ROOT / "storage" / "shards")
    module = tmp_path / "module.py"
    module.write_text(
        '"""See `storage.gone`."""\n\nX = 1\n"""Of `storage.base.errors`, not `medsam_core.gone.f(x)`."""\n'
    )
    assert unknown_names(module) == ["storage.gone", "medsam_core.gone.f"]


def test_docstrings_name_modules_that_exist() -> None:
    found = {name_of(path): unknown_names(path) for path in MODULES}
    assert {name: names for name, names in found.items() if names} == {}


def test_documents_name_modules_that_exist() -> None:
    names = {name_of(path): list(dotted_names(path.read_text())) for path in DOCUMENTS}
    assert sum(map(len, names.values())) > 3
    packaged = {path: [name for name in found if name.split(".")[0] in PACKAGES] for path, found in names.items()}
    assert {
        path: gone for path, found in packaged.items() if (gone := [name for name in found if not exists(name)])
    } == {}


def test_comments_cite_documents_that_exist() -> None:
    cited = {
        f"{name_of(path)}: {name}"
        for path in [*MODULES, *DOCUMENTS]
        for name in re.findall(r"\bdocs/[\w/.-]*\w", path.read_text())
        if not (ROOT / name).exists() and not list((ROOT / name).parent.glob(f"{Path(name).name}-*.md"))
    }
    assert cited == set()
    assert not [name_of(path) for path in [*MODULES, *DOCUMENTS] if re.search(r"\bDESIGN\b", path.read_text())]


TABLE_FILES = {"read_csv", "to_csv", "read_parquet", "to_parquet", "write_parquet"}
"""What reads or writes a table on disk."""


def test_tables_of_evaluation_are_written_and_read_by_one_module_each() -> None:
    """`score_files` for rows, `report_files` for reports: a column or a name changes in one place."""
    rooms = [ROOT / "pipelines" / room for room in ("evaluation", "folder_inference")]
    users = {
        name_of(path)
        for path in [*(path for room in rooms for path in room.glob("*.py")), ROOT / "pipelines" / "summary.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in TABLE_FILES)
        or (isinstance(node, ast.Name) and node.id in TABLE_FILES)
    }
    assert users == {f"pipelines/evaluation/{name}.py" for name in ("score_files", "report_files")}


def imported(statement: str) -> set[str]:
    """Return the top-level modules that a statement imports in a fresh process."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def orchestrated(tree: ast.AST) -> list[str]:
    """Return the texts that speak of assets."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [
        text
        for text in texts
        if re.search(r"materialis|slice_store/|teacher_(embeddings|logits|checkpoint)|student_|dataset_release", text)
    ]


def test_storage_says_what_is_missing_and_names_no_asset() -> None:
    assert orchestrated(ast.parse('f"found none; materialise slice_store/{modality}"'))
    texts = {name_of(path): orchestrated(ast.parse(path.read_text())) for path in (ROOT / "storage").rglob("*.py")}
    assert not {name: found for name, found in texts.items() if found}


def test_a_code_location_loads_without_torch() -> None:
    """A step process, and a run that reuses everything, must not pay for it."""
    modules = imported("import pipelines.definitions")
    assert {"dagster", "pipelines", "storage"} <= modules
    assert not modules & {"torch", "timm", "torchvision"}


def test_the_console_script_starts_without_torch_mlflow_and_dagster() -> None:
    modules = imported("import pipelines.cli")
    assert "pipelines" in modules
    assert not modules & {"torch", "mlflow", "dagster", "zarr", "pandas"}


def test_core_and_storage_load_without_each_other_and_without_an_orchestrator() -> None:
    storage = sorted(name_of(path)[:-3].replace("/", ".") for path in (ROOT / "storage").rglob("[a-z]*.py"))
    modules = imported("import " + ", ".join(storage))
    assert "zarr" in modules
    assert not modules & {"medsam_core", "pipelines", "torch", "dagster", "mlflow"}


@pytest.mark.parametrize("module", ["storage.slices.reader", "storage.answers.teacher_cache"])
def test_reading_loads_nothing_that_only_writing_needs(module: str) -> None:
    """Every process of a data loader opens a store or a cache for itself."""
    script = f"import {module}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {"zarr", "pandas", "pyarrow", "isal"}
    assert not {name for name in loaded if name.startswith("storage.") and "writ" in name}


STRIDES = {4, 8, 16}
"""Of encoders and of SAM's decoder: `medsam_core.base.geometry` and the encoders' registry alone know them."""

FREE_OF_STRIDES = {"medsam_core/models/sam.py"}
"""Divides channels, not pixels."""

STAGE_WORDS = {"distillation", "finetuning", "embeddings", "logits"}


def strides_in(tree: ast.AST) -> list[int]:
    """Return the lines that divide by a stride."""
    divisions = (node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv))
    return [node.lineno for node in divisions if isinstance(node.right, ast.Constant) and node.right.value in STRIDES]


def branches_on_stages(tree: ast.AST) -> list[int]:
    """Return the lines that compare something with the name of a stage or of its answers."""
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    words = [{part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} for node in compared]
    return [node.lineno for node, values in zip(compared, words, strict=True) if STAGE_WORDS & values]


def test_the_search_for_strides_and_branches_sees_what_it_is_meant_to_see() -> None:
    source = "a = size // 16\nb = grid // 4\nc = size // n\nd = stage == 'distillation'\ne = x in ('logits', 'y')\n"
    tree = ast.parse(source)
    assert (strides_in(tree), branches_on_stages(tree)) == ([1, 2], [4, 5])


def test_no_code_knows_a_stride_or_asks_which_stage_it_is() -> None:
    found = {}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        lines = branches_on_stages(tree) + ([] if name_of(path) in FREE_OF_STRIDES else strides_in(tree))
        if lines:
            found[name_of(path)] = lines
    assert not found


MOST_LINES = 49
"""Of a function, its docstring included."""
MOST_PARAMETERS = 8
MOST_ANY = 100
"""Times that a module of the packages may say `Any`, all together: what a library leaves untyped, and no more."""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def n_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    bound = [one for one in named[:1] if one.arg in ("self", "cls")]
    return len(named) - len(bound) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def test_functions_are_short_and_take_few_parameters() -> None:
    found = [
        (f"{name_of(path)}:{one.name}", n_lines(one), n_parameters(one)) for path in MODULES for one in functions(path)
    ]
    assert len(found) > 500
    assert [name for name, lines, _ in found if lines > MOST_LINES] == []
    assert [name for name, _, parameters in found if parameters > MOST_PARAMETERS] == []


def test_modules_are_small() -> None:
    lines = [path.read_text().count("\n") for path in MODULES if path.name != "__init__.py"]
    assert statistics.median(lines) < 120


def test_types_are_said() -> None:
    found = {name_of(path): len(re.findall(r"\bAny\b", path.read_text())) for path in MODULES}
    assert sum(found.values()) <= MOST_ANY, {name: count for name, count in found.items() if count}
