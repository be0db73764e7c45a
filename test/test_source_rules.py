"""The rules of CONTRIBUTING.md and ARCHITECTURE.md that a script can check."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [p for p in ROOT.glob("src/**/*") if p.suffix in (".h", ".cc", ".cu", ".cuh")]
PYTHON = [
    p
    for folder in ("blocksparse", "test", "bench", "examples", "tools")
    for p in (ROOT / folder).rglob("*.py")
    if p.name != "_build_info.py"
]
KERNELS = [p for p in SOURCES if "kernels" in p.parts]
OPS = [p for p in SOURCES if "ops" in p.parts]


def ids(paths):
    return [str(p.relative_to(ROOT)) for p in paths]


def code(path):
    """The text without // comments and strings' contents."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    return re.sub(r'R"\(.*?\)"', '""', text, flags=re.DOTALL)


@pytest.mark.parametrize("path", KERNELS, ids=ids(KERNELS))
def test_kernels_know_nothing_of_tensorflow(path):
    assert not re.search(
        r'#include\s*[<"](tensorflow|absl|Eigen|unsupported|xla|tsl)', path.read_text()
    )


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_inline_assembly_lives_in_common(path):
    assert path.parent.name == "common" or not re.search(r"\basm\b", code(path))


@pytest.mark.parametrize("path", OPS, ids=ids(OPS))
def test_ops_launch_and_compute_nothing(path):
    assert "<<<" not in code(path)
    assert "NumElements(); ++" not in code(path)


@pytest.mark.parametrize("path", SOURCES + PYTHON, ids=ids(SOURCES + PYTHON))
def test_files_are_short_and_narrow(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 500
    assert max(map(len, lines), default=0) <= 100


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_sources_open_with_what_they_are_for(path):
    assert (
        path.suffix == ".cc"
        and path.with_suffix(".h").exists()
        or path.read_text().startswith("// ")
    )


@pytest.mark.parametrize(
    "name",
    [
        "layout.py",
        "testing/reference.py",
        "testing/tolerance.py",
        "testing/layouts.py",
        "testing/kernels.py",
    ],
)
def test_plans_and_references_need_no_tensorflow(name):
    assert not re.search(
        r"^\s*(import|from) (tensorflow|blocksparse)",
        (ROOT / "blocksparse" / name).read_text(),
        re.MULTILINE,
    )


def test_the_package_uses_tensorflow_s_public_interface():
    package = [p for p in PYTHON if "blocksparse" in p.parts[len(ROOT.parts) :]]
    assert not [p for p in package if "tensorflow.python" in p.read_text()]
    # "compat.v1" in code, not in docstrings; this list may only shrink
    users = {
        p.name
        for p in package
        if re.search(r"^[^\"'`]*tf\.compat\.v1", p.read_text(), re.MULTILINE)
    }
    assert users <= {"_tables.py"}


def registered_ops():
    return {
        name: path
        for path in OPS
        for name in re.findall(r'REGISTER_OP\("(\w+)"\)', path.read_text())
    }


@pytest.mark.parametrize("name", registered_ops())
def test_every_op_has_a_doc_a_shape_function_and_a_test(name):
    text = registered_ops()[name].read_text()
    registration = text[text.index(f'REGISTER_OP("{name}")') :].split(')");', 1)[0]
    assert ".SetShapeFn(" in registration and ".Doc(" in registration
    assert (
        text.count(f'Name("{name}").Device(DEVICE)') == 1
    )  # registered for the CPU and the GPU alike
    assert any(name in p.read_text() for p in (ROOT / "test").glob("*.py"))


def rooms():
    table = (ROOT / "ARCHITECTURE.md").read_text().split("## The rooms")[1].split("\n\n")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return {cells[0].strip(): re.findall(r"`([^`]+)`", " ".join(cells[1:])) for cells in rows}


def test_every_room_has_its_files():
    missing = [
        f"{room}: {name}"
        for room, names in rooms().items()
        for name in names
        if not (ROOT / name).exists()
    ]
    assert not missing
    for room, names in rooms().items():
        assert f"src/kernels/{room}_cpu.cc" in names
    stems = {path.name.removesuffix("_op.cc") for path in OPS if path.suffix == ".cc"}
    assert stems == set(rooms())


def test_the_project_speaks_of_itself_alone():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = re.compile(r"/work/|\.\./shared|issue #?\d", re.IGNORECASE)
    found = [
        name
        for name in listed.stdout.split()
        if (ROOT / name).suffix in (".py", ".md", ".h", ".cc", ".cu")
        and name != "test/test_source_rules.py"
        and words.search((ROOT / name).read_text())
    ]
    assert not found
