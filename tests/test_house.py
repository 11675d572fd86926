"""The house: which module may import which, what is public, and that importing stays cheap."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmds_nb

ROOT = Path(llmds_nb.__file__).parent
REPOSITORY = Path(__file__).parents[1]
PRIVATE_LEAVES = {"_jit", "_parts", "_checks", "_store", "errors"}

# A kernel module imports only modules of a lower level, and of ours nothing else but _jit.
LEVELS = [
    "lines products bm25_formula",
    "status hashing topk varint distance lsa rowheap bitmap kv_state admission lookahead planes "
    "reach",
    "hashtable queue_state rng sketch tokenize blocks paging prefix codes signs kv_chunks",
    "postings unpacked heap tenants fusion routing kv_history kv_tables sieve",
    "hnsw waiting eviction bm25_state",
    "batching kv_leaves hnsw_build hnsw_search bm25_window",
    "kv_pages kv_compact hnsw_mend bm25_segment",
    "kv_rows bm25",
    "kv_attach",
    "kv_append",
    "kv",
    "continuous",
    "stepping",
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}


def imports_of(path):
    """Modules of ours that a file imports, relative to the package, such as `kernels.heap`."""
    package = ["llmds_nb", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {start} | {f"{start}.{alias.name}" for alias in node.names}
    return {name.removeprefix("llmds_nb").removeprefix(".") for name in found if is_ours(name)}


def is_ours(name):
    """Whether a dotted name is a module of the package (and not a name inside one)."""
    path = ROOT.joinpath(*name.split(".")[1:])
    return name.split(".")[0] == "llmds_nb" and (path.is_dir() or path.with_suffix(".py").is_file())


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*.py")), ids=lambda path: path.stem)
def test_kernels_import_lower_levels_only(path):
    if path.stem == "__init__":
        return
    assert path.stem in LEVEL, f"give kernels/{path.name} a level in this test"
    for name in imports_of(path) - {"", "_jit", "kernels"}:
        part = name.removeprefix("kernels.")
        assert name.startswith("kernels.") and LEVEL[part] < LEVEL[path.stem], name


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_objects_import_kernels_leaves_and_objects(path):
    names = imports_of(path)
    if path.stem == "__main__":
        return
    assert not [n for n in names if n.startswith(("serving", "integrations", "__main__"))]
    if path.stem in PRIVATE_LEAVES:
        assert names <= PRIVATE_LEAVES | {""}


def parts_of(tree):
    """Names of the kernels in a module that have no door for Python."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for made in node.decorator_list
        if isinstance(made, ast.Call)
        and {"internal", "apart"} & {keyword.arg for keyword in made.keywords}
    }


def test_only_kernels_call_what_has_no_door_for_python():
    trees = {path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
    parts = {path.stem: parts_of(tree) for path, tree in trees.items() if "kernels" in path.parts}
    assert sum(map(len, parts.values())) > 100
    for path, tree in trees.items():
        here, modules = set(parts_of(tree)), {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                module = parts.get(node.module.rpartition(".")[2], set())
                here |= {name.asname or name.name for name in node.names if name.name in module}
                modules |= {name.asname or name.name: name.name for name in node.names}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                continue  # a kernel
            calls = (x.func for x in ast.walk(node) if isinstance(x, ast.Call))
            for call in calls:
                if isinstance(call, ast.Name):
                    assert call.id not in here, (path.name, call.id)
                elif isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
                    module = modules.get(call.value.id)  # such as k, for hnsw
                    assert call.attr not in parts.get(module, ()), (path.name, call.attr)


@pytest.mark.parametrize("path", sorted(ROOT.glob("serving/*.py")), ids=lambda path: path.stem)
def test_serving_uses_objects_only(path):
    for name in imports_of(path):
        assert not name.startswith(("kernels", "integrations", "__main__")), name


def test_the_object_modules_do_not_import_each_other_in_a_circle():
    left = {path.stem: imports_of(path) for path in ROOT.glob("*.py") if path.stem != "__main__"}
    left.pop("__init__")
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_public_names_are_those_of_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    block = re.search(r"<!-- public names -->(.*?)<!-- end -->", readme, re.S).group(1)
    assert llmds_nb.__all__ == sorted(re.findall(r"`(\w+)", block))
    for name in llmds_nb.__all__:
        assert getattr(llmds_nb, name).__doc__
    assert set(llmds_nb.__all__) <= set(dir(llmds_nb))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = llmds_nb.no_such_name


def test_version_is_that_of_the_project():
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert f'version = "{llmds_nb.__version__}"' in project


def run(code):
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_lazy_and_imports_no_scipy():
    heavy = "{'scipy', 'numba', 'numpy'}"
    assert run(f"import llmds_nb, sys; print({heavy} & sys.modules.keys())").strip() == "set()"
    out = run(
        "import llmds_nb, sys\n"
        "for name in llmds_nb.__all__: getattr(llmds_nb, name)\n"
        "from llmds_nb._jit import KERNELS\n"
        "print('scipy.sparse' in sys.modules, sum(len(k.signatures) for k in KERNELS))"
    )
    assert out.split() == ["False", "0"]
