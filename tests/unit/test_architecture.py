"""What the import linter cannot see: which modules a program really loads when it runs."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import jobworker.errors
from jobworker.output import log
from jobworker.shim import record, wire

SOURCE = Path(jobworker.errors.__file__).parent.parent
ROOT = Path(__file__).parent.parent.parent
PYPROJECT = ROOT / "pyproject.toml"

SHIM_PARTS = (
    "jobworker.shim",
    "jobworker.cgroups",
    "jobworker.errors",
    "jobworker.garbage",
    "jobworker.holes",
    "jobworker.lazy",
    "jobworker.steps",
)
PRINT_MODULES = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
json.dump(sorted(sys.modules), sys.stdout)
"""


def loaded_modules(name: str, *options: str) -> set[str]:
    """Import `name` in an interpreter of its own; return all that is loaded then.

    Its environment is empty, so that a measurement of coverage does not load what it needs.
    """
    command = [sys.executable, *options, "-c", PRINT_MODULES, str(SOURCE), name]
    finished = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stdout))


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_shim_process_loads_the_standard_library_and_its_own_parts_alone():
    loaded = loaded_modules("jobworker.shim.main", "-I", "-S")
    foreign = {
        module
        for module in loaded
        if module not in {"__main__", "jobworker"}
        and module.partition(".")[0] not in sys.stdlib_module_names
        and not within(module, *SHIM_PARTS)
    }
    assert foreign == set()


def test_the_shim_process_loads_neither_asyncio_nor_the_servers_side():
    loaded = loaded_modules("jobworker.shim.main", "-I", "-S")
    assert not {m for m in loaded if within(m, "asyncio", "jobworker.shim.client")}


def test_the_shim_process_does_without_what_is_large():
    """Dataclasses load `inspect`: 1.5 MiB in the shim and in its keeper, and in every clone."""
    loaded = loaded_modules("jobworker.shim.main", "-I", "-S")
    assert not loaded & {"dataclasses", "inspect", "logging", "pathlib", "subprocess"}


def test_the_cli_loads_no_code_of_the_server():
    loaded = loaded_modules("jobworker.cli.main")
    server = (
        "jobworker.cgroups.service",
        "jobworker.daemon",
        "jobworker.job",
        "jobworker.output",
        "jobworker.rpc.server",
        "jobworker.shim",
        "sqlite3",
    )
    assert not {m for m in loaded if within(m, *server)}


def test_errors_imports_nothing():
    tree = ast.parse(Path(jobworker.errors.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["from __future__ import annotations"]


@cache
def modules() -> dict[Path, tuple[str, set[str]]]:
    """Return each module's docstring, and the top-level names that it imports, wherever in it."""
    found = {}
    for path in SOURCE.joinpath("jobworker").rglob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        names = set()
        for node in ast.walk(module):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
        found[path] = ast.get_docstring(module) or "", names
    return found


def test_the_dependencies_are_what_the_program_imports_and_nothing_else():
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    declared = {re.split("[^A-Za-z0-9-]", line)[0] for line in project["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    imported = set().union(*(names for _, names in modules().values()))
    foreign = imported - sys.stdlib_module_names - {"jobworker"}
    assert {each for name in foreign for each in providers[name]} == declared


def test_every_module_that_calls_itself_pure_is_held_to_it():
    linter = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [each for each in linter["contracts"] if each["id"] == "pure"]
    pure = set()
    for path, (docstring, _) in modules().items():
        if re.search(r"\bPure[.:]", docstring):
            pure.add(".".join(path.relative_to(SOURCE).with_suffix("").parts))
    assert pure <= set(contract["source_modules"])


def test_output_removes_what_the_shim_puts_into_a_jobs_directory():
    """Two siblings that may not import each other, and must agree on these names."""
    of_the_shim = {wire.EXIT_RECORD_NAME, record.TEMPORARY_NAME}
    assert set(log.OUR_NAMES) == {stream.value for stream in log.Stream} | of_the_shim


def test_every_test_that_the_architecture_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    texts = [path.read_text(encoding="utf-8") for path in ROOT.joinpath("tests").rglob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"def (test_\w+)\(", text)}
    assert named
    assert named <= there


def modules_on_the_map() -> set[str]:
    """Return the files that "Where things are" names, relative to the package."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^src/jobworker/\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    named, package = set(), ""
    for line in tree.splitlines():
        if begins := re.match(r"  ([\w/]+)(/|\.py)", line):
            package = f"{begins[1]}/" if begins[2] == "/" else ""
        named |= {package + name for name in re.findall(r"\w+\.py", line)}
    return named


def test_the_map_in_the_architecture_names_every_module_and_no_other():
    package = SOURCE / "jobworker"
    paths = (path.relative_to(package) for path in package.rglob("*.py"))
    there = {
        str(path)
        for path in paths
        if path.stem not in {"__init__", "__main__"} and not path.is_relative_to("rpc/v1")
    }
    assert modules_on_the_map() == there
