"""The house: layers, no cycles, no hidden imports, every public name documented and run."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gradsift

PACKAGE = Path(gradsift.__file__).parent
TESTS = Path(__file__).parent
MODULES = {
    ".".join(("gradsift", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

LAYERS = (
    ("errors",),
    ("nested", "clock"),
    ("records",),
    ("data", "models"),
    ("scores",),
    ("sampling", "fitting"),
    ("monitors",),
    ("gate", "rules", "predictor"),
    ("recipes",),
    ("engine",),
    ("sifting",),
    ("loader", "prospect"),
    ("parallel",),
    ("report",),
    ("budget", "schedule", "checkpoint"),
    ("trainer",),
    ("comparison",),
    ("cli",),
    ("__init__",),
)
"""Bottom up, as in docs/architecture.md. A module imports from its own room or an earlier layer."""

OPTIONAL = {
    "cleanlab": ("report",),
    "matplotlib": ("report",),
    "ray": ("engine",),
    "rich": ("cli", "trainer"),
    "scipy": ("comparison",),
    "sklearn": ("data",),
    "tensorboard": ("monitors",),
    "typer": ("cli",),
}
"""Packages of extras, and the only rooms that may import them."""


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imported(node: ast.stmt) -> list[str]:
    """The modules that a statement imports; for names out of a package, the submodules too."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name for name in submodules if name in MODULES] or [node.module]
    return []


def imports(name: str) -> list[str]:
    return [
        found
        for node in ast.walk(tree(name))
        if isinstance(node, ast.stmt)
        for found in imported(node)
    ]


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer(name: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room(name) in rooms)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    for other in imports(name):
        if other.split(".")[0] == "gradsift":
            assert other != "gradsift", f"{name} imports the public surface"
            below = layer(other) < layer(name)
            assert below or room(other) == room(name), f"{name} imports {other}"


def test_no_cycles() -> None:
    graph = {
        name: {other for other in imports(name) if other in MODULES and other != name}
        for name in MODULES
        if MODULES[name].name != "__init__.py"
    }
    remaining = dict(graph)
    while remaining:
        free = [name for name, needs in remaining.items() if not needs & remaining.keys()]
        assert free, f"a cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "gradsift.cli.entry"])
def test_no_hidden_imports(name: str) -> None:
    """The command line's entry may look for its extras; nobody else imports inside a function."""
    hidden = [
        node.lineno
        for function in ast.walk(tree(name))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_stay_in_their_rooms(name: str) -> None:
    for other in imports(name):
        rooms = OPTIONAL.get(other.removeprefix("torch.utils.").split(".")[0])
        assert rooms is None or room(name) in rooms, f"{name} imports {other}"


def test_the_core_needs_no_extra() -> None:
    blocked = "".join(f"sys.modules[{package!r}] = None; " for package in (*OPTIONAL, "beartype"))
    code = f"import sys; {blocked}import gradsift; print(sorted(gradsift.recipes)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "auto\n"), done.stderr


def test_importing_touches_no_random_state() -> None:
    code = (
        "import random, numpy, torch; "
        "before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state(); "
        "import gradsift; "
        "after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state(); "
        "print(before[:2] == after[:2] and torch.equal(before[2], after[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def public_names() -> list[tuple[str, object]]:
    """Everything a user can reach: the names of the package, and those of its public modules."""
    found: dict[str, object] = {}
    for name, value in vars(gradsift).items():
        if name.startswith("_"):
            continue
        if not isinstance(value, types.ModuleType):
            found[name] = value
            continue
        if not value.__name__.startswith("gradsift.") or name not in declared(gradsift):
            continue
        for inner in declared(value):
            found[f"{name}.{inner}"] = getattr(value, inner)
    return sorted(found.items())


def declared(module: types.ModuleType) -> list[str]:
    """Names that a package re-exports as `x as x`, or a plain module defines itself."""
    path = Path(str(module.__file__))
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if path.name == "__init__.py":
        aliases = [
            alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        return [alias.name for alias in aliases if alias.asname == alias.name]
    definitions = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [node.name for node in definitions if not node.name.startswith("_")]


def test_the_promised_names_are_there() -> None:
    names = {name for name, _ in public_names()}
    promised = {
        "sift",
        "Recipe",
        "recipes",
        "ScoreTable",
        "probe",
        "recalibrate_batch_norm",
        "scores.Loss",
        "scores.OutputGradient",
        "distributions.Mixed",
        "distributions.Power",
        "distributions.Proportional",
        "draws.Multinomial",
        "draws.Poisson",
        "draws.Stratified",
        "draws.Systematic",
        "draws.TopK",
        "monitors.tau",
    }
    assert promised <= names


@pytest.mark.parametrize(
    ("name", "value"), public_names(), ids=[name for name, _ in public_names()]
)
def test_public_names_are_documented_with_an_example(name: str, value: object) -> None:
    target = value if isinstance(value, type | types.FunctionType) else type(value)
    text = target.__doc__ or ""
    assert text.strip(), f"{name} has no docstring"
    abstract = getattr(target, "__abstractmethods__", None)
    error = isinstance(target, type) and issubclass(target, Exception)
    if not (abstract or error):
        assert ">>>" in text, f"{name} has no runnable example"


def test_the_public_surface_is_sorted() -> None:
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    lines = [
        (node.module, node.names[0].name)
        for node in body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradsift")
    ]
    assert lines == sorted(lines)


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short_and_functions_fit_a_screen(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            length = (node.end_lineno or 0) - node.lineno - docstring
            assert length <= 60, f"{name}.{node.name} has {length} lines"


def code_lines(path: Path) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        1
        for k, line in lines
        if k not in skipped and line.strip() and not line.strip().startswith("#")
    )


def test_there_is_as_much_test_as_code() -> None:
    code = sum(code_lines(path) for path in MODULES.values())
    assert sum(code_lines(path) for path in TESTS.rglob("*.py")) >= code


def test_every_module_can_be_imported() -> None:
    for name in MODULES:
        importlib.import_module(name)
