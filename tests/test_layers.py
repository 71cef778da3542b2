"""The layer contract of the design: arrows between rooms go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import iadd_fast
from iadd_fast import ops

ROOT = Path(iadd_fast.__file__).parent

# One line per level, top first; a room may import rooms of its own and of lower levels.
LEVELS = [
    ["__init__", "__main__", "cli", "demo", "doctor", "options"],
    ["report"],
    ["audit"],
    [
        "distillation",
        "distillation_run",
        "gradient_matching",
        "trajectory_matching",
        "evaluation",
        "evaluation_inputs",
        "evaluation_networks",
        "evaluation_rows",
        "experts",
        "expert_training",
        "run_state",
        "synthetic",
        "validation",
        "baselines",
        "comparison",
        "planning",
        "tuning",
    ],
    ["unroll", "importance", "matching", "training", "training_inputs", "training_progress"],
    ["fused"],
    ["augment", "students", "data", "artifacts", "machine", "metrics"],
    ["ops"],
    ["reference", "native"],
    [
        "arguments",
        "seeds",
        "settings",
        "specs",
        "interrupt",
        "memory",
        "versions",
        "devices",
        "distributed",
        "preset",
        "reading",
        "pickled",
    ],
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def imports(path: Path) -> set[str]:
    """Rooms of the project that a file imports, at any depth of its code."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "iadd_fast":
                names = [f"iadd_fast.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "iadd_fast" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


def test_arrows_go_down_only() -> None:
    """Breaks when, say, students import distillation, or a new file has no place in the levels."""
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "kernels":
            continue
        assert room in LEVEL, f"{room}: has no level"
        for other in imports(path):
            if other in LEVEL:
                assert LEVEL[other] >= LEVEL[room], f"{path.name} imports {other} from below"


def test_reference_and_kernels_import_nothing_of_the_project() -> None:
    """reference/ is checked by eye against torch alone; kernels/ and csrc/ stand alone."""
    for folder in (ROOT / "reference", ROOT.parent / "kernels"):
        for path in folder.rglob("*.py"):
            others = imports(path) - {folder.name}
            assert not others, f"{path}: imports {others}"


def test_every_room_is_a_package() -> None:
    """Breaks when a folder lacks __init__.py: it works from a clone, and a wheel leaves it out."""
    for path in ROOT.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_only_ops_knows_the_backends() -> None:
    """Nothing above ops may reach for a backend of its own."""
    backends = {"reference", "kernels", "native"}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room not in backends | {"ops"}:
            assert not imports(path) & backends, path


def has_kernel(operator: str, backend: str, kind: str) -> bool:
    """Whether the project has one for this backend, wherever that can run."""
    return f"no {kind} kernel" not in str(ops.backends()[operator][backend])


def test_an_operator_has_one_name_in_every_room() -> None:
    """Breaks when a room lacks an operator, or spells it otherwise."""
    tree = ROOT.parent
    for operator in ops.backends():
        for place in (
            f"iadd_fast/ops/{operator}.py",
            f"iadd_fast/reference/{operator}.py",
            f"iadd_fast/native/{operator}.py",
            f"csrc/include/{operator}.h",
            f"csrc/cpu/{operator}.cpp",
            f"tests/ops/test_{operator}.py",
            f"bench/bench_{operator}.py",
        ):
            assert (tree / place).is_file(), place
        triton = has_kernel(operator, "triton", "Triton")
        assert (tree / f"kernels/{operator}.py").is_file() == triton
        assert (tree / f"tests/kernels/test_{operator}.py").is_file() == triton
        cuda = has_kernel(operator, "cuda", "CUDA C++")
        assert (tree / f"csrc/cuda/{operator}.cu").is_file() == cuda


def test_the_rooms_of_one_operator_have_the_same_functions() -> None:
    """Breaks when a backend misses an order, or takes its arguments in another order."""
    for operator in ops.backends():
        definition = functions(ROOT / "reference" / f"{operator}.py", operator)
        assert definition
        rooms = [ROOT / "native"]
        rooms += [ROOT.parent / "kernels"] if has_kernel(operator, "triton", "Triton") else []
        for room in rooms:
            assert functions(room / f"{operator}.py", operator) == definition, room


def functions(path: Path, operator: str) -> dict[str, list[str]]:
    """Public functions of a room named after the operator, with their arguments' names."""
    return {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith(operator)
        and not node.name.endswith("kernel")
    }
