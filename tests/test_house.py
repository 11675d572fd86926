"""The house: who may import whom, what is public, and that importing stays cheap."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmds_nb
from llmds_nb._core.kernel_cache import KERNEL_IMPORTS, domain_of

ROOT = Path(llmds_nb.__file__).parent
REPOSITORY = Path(__file__).parents[1]
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {
    ".".join(["llmds_nb", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in FILES
}

# What each folder may import besides itself, `errors`, and what `_core` and `primitives` allow.
MAY_IMPORT = {
    "_core": set(),
    "primitives": {"_core"},
    "attention": {"_core", "primitives"},
    "structures": {"_core", "primitives"},
    "kv": {"_core", "primitives"},
    "scheduling": {"_core", "primitives", "kv"},
    "hnsw": {"_core", "primitives"},
    "text": {"_core", "primitives"},
    "bm25": {"_core", "primitives", "text"},
    "pipeline": {"_core", "primitives", "hnsw", "bm25", "text", "structures"},
}
# Uses public names only (of domain folders, too) and what is named here; nothing imports it.
USERS = {"tools": {"_core"}, "integrations": {"_core"}}


def imports_of(path):
    """The modules of ours that a file imports, or (module, name) as `module.name`."""
    package = ["llmds_nb", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "llmds_nb"}


def folder_of(name):
    return name.split(".")[1] if "." in name else ""


def is_public(name):
    if name in ("llmds_nb", "llmds_nb.__version__"):
        return True
    package, _, last = name.rpartition(".")
    return last in getattr(importlib.import_module(package), "__all__", ())


def module_of(path):
    return ".".join(["llmds_nb", *path.relative_to(ROOT).with_suffix("").parts])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = path.relative_to(ROOT).parts[0]
    if own in ("__init__.py", "__main__.py"):
        return
    domain = domain_of(module_of(path))
    for name in imports_of(path):
        target = folder_of(name)
        if own in USERS:
            assert target in {own, *USERS[own]} or is_public(name), f"{name} is not public"
        else:
            assert target in MAY_IMPORT[own] | {own, "errors"}, name
        if domain is not None:
            allowed = {domain, "primitives", *KERNEL_IMPORTS.get(domain, ())}
            module = name if name in MODULES else name.rpartition(".")[0]
            assert target == "_core" or domain_of(module) in allowed, f"a kernel imports {name}"


def test_the_rule_of_kernels_is_within_that_of_their_domains():
    for domain, others in KERNEL_IMPORTS.items():
        assert set(others) <= MAY_IMPORT[domain]


def ir_only_in(tree):
    """Names of the kernels of a module that have no entry point for Python."""
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for made in node.decorator_list
        if isinstance(made, ast.Call)
        and {"internal", "noinline"} & {keyword.arg for keyword in made.keywords}
    }


def test_python_calls_no_kernel_without_an_entry_point():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    ir_only = {module_of(path): ir_only_in(tree) for path, tree in trees.items()}
    assert sum(map(len, ir_only.values())) > 100
    for path, tree in trees.items():
        here, modules = set(ir_only_in(tree)), {}
        package = ["llmds_nb", *path.relative_to(ROOT).parts[:-1]]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                start = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    name = alias.asname or alias.name
                    if alias.name in ir_only.get(start, ()):
                        here.add(name)
                    modules[name] = f"{start}.{alias.name}"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                continue  # a kernel
            calls = (x.func for x in ast.walk(node) if isinstance(x, ast.Call))
            for call in calls:
                if isinstance(call, ast.Name):
                    assert call.id not in here, (path, call.id)
                elif isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
                    module = modules.get(call.value.id)  # such as k, for hnsw.kernels.graph
                    assert call.attr not in ir_only.get(module, ()), (path, call.attr)


def functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_kernels_take_at_most_ten_arguments():
    for path, node in functions():
        if domain_of(module_of(path)) is not None:
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            assert len(arguments) <= 10, f"{path}: {node.name} takes {len(arguments)}"


def test_files_have_at_most_500_lines():
    for path in [*FILES, *REPOSITORY.glob("tests/**/*.py")]:
        assert len(path.read_text().splitlines()) <= 500, path


def test_the_modules_of_a_domain_do_not_import_each_other_in_a_circle():
    left = {}
    for path in FILES:
        if path.name != "__init__.py":
            names = imports_of(path)
            modules = {name if name in MODULES else name.rpartition(".")[0] for name in names}
            left[module_of(path)] = modules
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


PACKAGES = [
    path.parent
    for path in FILES
    if path.name == "__init__.py" and "lazy_exports" in path.read_text()
]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_type_checkers_see_the_names_that_a_package_exports(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) == 2]
    modules = ast.literal_eval(call.args[1])
    homes = {name: module for module, names in modules.items() for name in names.split()}
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == homes
    package = __import__(".".join(["llmds_nb", *folder.relative_to(ROOT).parts]), fromlist=["x"])
    assert package.__all__ == sorted(homes) and set(homes) <= set(dir(package))
    for name in homes:
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def public_objects():
    for folder in PACKAGES:
        package = importlib.import_module(".".join(["llmds_nb", *folder.relative_to(ROOT).parts]))
        for name in package.__all__:
            yield getattr(package, name)


def test_public_signatures_are_typed_and_described():
    bare = set()
    for thing in set(public_objects()):
        members = [(thing.__name__, thing)]
        if isinstance(thing, type):
            members = [(f"{thing.__name__}.{name}", getattr(thing, name)) for name in dir(thing)]
            own = [cls for cls in thing.__mro__ if cls.__module__.startswith("llmds_nb.")]
            members = [
                (name, member)
                for name, member in members
                if any(name.split(".")[1] in vars(cls) for cls in own)
                and (not name.split(".")[1].startswith("_") or name.endswith("__init__"))
            ]
        for name, member in members:
            function = member.fget if isinstance(member, property) else member
            if not callable(function) or isinstance(function, type):
                continue
            signature = inspect.signature(function)
            kinds = [
                p.annotation for n, p in signature.parameters.items() if n not in ("self", "cls")
            ]
            if not name.endswith("__init__"):
                kinds.append(signature.return_annotation)
                if not function.__doc__:
                    bare.add(f"{name}: no docstring")
            if inspect.Signature.empty in kinds:
                bare.add(f"{name}{signature}")
    assert not bare, "\n".join(sorted(bare))


def test_public_names_are_those_of_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    block = re.search(r"<!-- public names -->(.*?)<!-- end -->", readme, re.S).group(1)
    assert llmds_nb.__all__ == sorted(re.findall(r"`(\w+)", block))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_files_that_documents_name_exist(document):
    text = (REPOSITORY / document).read_text()
    named = set(re.findall(r"[\w./]*\w\.py\b", text))
    known = [
        path.as_posix()
        for folder in ("llmds_nb", "tests", ".ci")
        for path in REPOSITORY.rglob(f"{folder}/**/*.py")
    ]
    assert named
    for name in named:
        assert any(path.endswith("/" + name) for path in known), name


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
        "from llmds_nb._core.jit import KERNELS\n"
        "print('scipy.sparse' in sys.modules, sum(len(k.signatures) for k in KERNELS))"
    )
    assert out.split() == ["False", "0"]
