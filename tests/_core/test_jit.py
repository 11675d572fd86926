"""The kernel cache never gives a stale result, and never stands in the way of an import."""

import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmds_nb
from llmds_nb._core import jit, kernel_cache
from llmds_nb._core.intrinsics import array_at, mul_hi
from llmds_nb._core.jit import REFUSALS, entry_of, kernel
from llmds_nb._core.kernel_cache import KERNEL_IMPORTS

ROOT = Path(llmds_nb.__file__).parent
CALLER = """
from ..{up}_core.jit import kernel
from {module} import callee

@kernel
def caller(x):
    return callee(x) + 10
"""
CALLEE = """
from {up}_core.jit import kernel

@kernel
def callee(x):
    return x + {value}
"""
CALL = (
    "from llmds_nb.kv.kernels.caller import caller; r = caller(1); "
    "print(r, sum(caller.stats.cache_hits.values()))"
)


def write(package, path, text):
    """A module of a package, with the packages above it."""
    file = package / path
    file.parent.mkdir(parents=True, exist_ok=True)
    for folder in file.parents:
        if folder == package.parent:
            break
        (folder / "__init__.py").touch()
    file.write_text(text)


def write_callee(package, value, text=CALLEE):
    write(package, "kv/kernels/callee.py", text.format(up="...", value=value))


@pytest.fixture
def copy(tmp_path):
    """A small package with our `_core` and two kernels, one calling the other in another file."""
    package = tmp_path / "llmds_nb"
    shutil.copytree(ROOT / "_core", package / "_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "errors.py", package)
    write(package, "kv/kernels/caller.py", CALLER.format(up=".", module=".callee"))
    write_callee(package, 1)
    return package


def run(package, code=CALL, **env):
    # Python takes old bytecode for a file that is edited twice in a second and keeps its size.
    own = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {**os.environ, **own, **env}
    env.pop("NUMBA_CACHE_DIR", None)
    env.update({k: v for k, v in {"NUMBA_CACHE_DIR": env.pop("CACHE", "")}.items() if v})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=package.parent
    )


def test_an_edited_callee_in_another_file_is_seen_by_its_cached_caller(copy):
    assert run(copy).stdout.split() == ["12", "0"]
    assert run(copy).stdout.split() == ["12", "1"]  # from the disk cache
    write_callee(copy, 100)
    assert run(copy).stdout.split() == ["111", "0"]
    write_callee(copy, 1)
    assert run(copy).stdout.split() == ["12", "1"]  # the first version's code is still there


# Where a kernel and its callee in another file can be.
PLACES = [
    ("kv/kernels", "kv/kernels"),
    ("kv/kernels", "kv/kernels/nested"),
    ("kv/kernels/nested", "kv/kernels"),
    ("kv/kernels", "primitives"),
    ("primitives", "primitives"),
    ("scheduling/kernels", "kv/kernels"),
    ("scheduling/kernels", "kv/kernels/nested"),
    ("bm25/kernels", "text/kernels"),
    ("bm25/kernels", "bm25/kernels"),
    ("hnsw/kernels", "hnsw/kernels"),
    ("tools/replay/kernels", "tools/replay/kernels"),
    ("kv/kernels", "_core"),
]


def test_an_edit_is_seen_by_every_kernel_that_can_reach_it_and_by_no_other(tmp_path):
    package = tmp_path / "llmds_nb"
    shutil.copytree(ROOT / "_core", package / "_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "errors.py", package)
    old = (package / "_core/state.py").read_text()
    files = [f"{at}/callee{i}.py" for i, (_, at) in enumerate(PLACES)]
    files[-1] = "_core/state.py"  # of those that end up in compiled code

    def edit(i, value):
        up = "." * (files[i].count("/") + 1)
        if files[i].startswith("_core"):
            callee = CALLEE.format(up=".", value=value).replace("._core.jit", ".jit")
            write(package, files[i], old + callee)
        else:
            write(package, files[i], CALLEE.format(up=up, value=value))

    calls = []
    for i, (caller, _) in enumerate(PLACES):
        edit(i, 1)
        up = "." * caller.count("/")
        module = ".." + up + files[i].removesuffix(".py").replace("/", ".")
        write(package, f"{caller}/caller{i}.py", CALLER.format(up=up, module=module))
        path = f"llmds_nb.{caller.replace('/', '.')}.caller{i}"
        calls.append(f"from {path} import caller as c{i}; r = c{i}(1)")
        calls.append(f"print(r, sum(c{i}.stats.cache_hits.values()))")

    def results():
        result = run(package, "\n".join(calls))
        assert result.returncode == 0, result.stderr
        return [tuple(map(int, line.split())) for line in result.stdout.splitlines()]

    assert results() == [(12, 0)] * len(PLACES)
    expected = [(12, 1)] * len(PLACES)
    assert results() == expected  # all from the disk cache
    write(package, "_core/validation.py", "x = 2\n")  # in no compiled code
    domains = [caller.partition("/kernels")[0] for caller, _ in PLACES]
    for i, (_, at) in enumerate(PLACES):
        edit(i, 100)
        expected[i] = (111, 1)
        edited = at.partition("/kernels")[0]
        everywhere = edited in ("primitives", "_core")
        assert results() == [
            (
                r,
                int(not (everywhere or edited in (domain, *KERNEL_IMPORTS.get(domain, ())))),
            )
            for (r, _), domain in zip(expected, domains, strict=True)
        ]


def test_a_kernel_outside_the_package_is_compiled_anew_when_its_file_changes(copy):
    script = "from llmds_nb._core.jit import kernel\n@kernel\ndef callee(x):\n    return x + {}\n"
    script += "@kernel\ndef caller(x):\n    return callee(x) + 10\n"
    call = "from own import caller; r = caller(1); print(r, sum(caller.stats.cache_hits.values()))"
    own = copy.parent / "own.py"
    own.write_text(script.format(1))
    assert run(copy, call).stdout.split() == ["12", "0"]
    assert run(copy, call).stdout.split() == ["12", "1"]
    own.write_text(script.format(100))
    assert run(copy, call).stdout.split() == ["111", "0"]


def test_flags_that_change_code_have_a_cache_of_their_own(copy):
    reader = CALLER.format(up=".", module=".callee").replace("callee(x) + 10", "x[5]")
    write(copy, "kv/kernels/caller.py", reader)
    code = (
        "import numpy as np; from llmds_nb.kv.kernels.caller import caller\n"
        "try: caller(np.zeros(2)); print('read')\n"
        "except IndexError: print('caught')"
    )
    assert run(copy, code, NUMBA_BOUNDSCHECK="0").stdout.strip() == "read"
    assert run(copy, code, NUMBA_BOUNDSCHECK="1").stdout.strip() == "caught"


IR_ONLY = """
from {up}_core.jit import kernel

@kernel({value}=True)
def callee(x):
    return x[5] if x[0] < 1 else x[0]
"""
CALL_IR_ONLY = """
import numpy as np
from llmds_nb._core import compiler
compiler.IrOnlyCompiler = {}
from llmds_nb.kv.kernels.caller import caller
print(caller(np.ones(2)), caller(np.zeros(6)), caller(np.full(1, 2)))
try: caller(np.zeros(2))
except IndexError: print("caught")
print(sum(caller.stats.cache_hits.values()))
"""


@pytest.mark.parametrize("option", ["internal", "noinline"])
def test_an_ir_only_callee_works_in_its_callers_and_leaves_no_file(copy, option):
    write_callee(copy, option, IR_ONLY)
    # Compiled, from the disk cache, and where Numba has no such library.
    for compiler, calls in (
        ("compiler.IrOnlyCompiler", 0),
        ("compiler.IrOnlyCompiler", 1),
        ("None", 0),
    ):
        if compiler == "None":
            shutil.rmtree(copy / "kv" / "kernels" / "__pycache__")
        result = run(copy, CALL_IR_ONLY.format(compiler), NUMBA_BOUNDSCHECK="1")
        assert result.stdout.split() == ["11.0", "10.0", "12", "caught", str(2 * calls)]
    files = [path.name for path in copy.rglob("*.nbc")]
    assert len(files) == 2 and all(name.startswith("kv.kernels.caller") for name in files)


def test_an_unwritable_cache_folder_does_not_break_the_import(copy, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file, where a folder would have to be made")
    (copy / "kv" / "kernels" / "__pycache__").write_text("a file here too")
    cache = str(blocked / "cache")
    for env in ({}, {"CACHE": cache}):
        result = run(copy, HOME=cache, XDG_CACHE_HOME=cache, **env)
        assert result.stdout.split() == ["12", "0"], result.stderr
        assert result.stderr.count("not cached on disk") == 1


def test_kernels_of_a_zipped_package_are_cached_where_numba_can(copy):
    archive = shutil.make_archive(str(copy.parent / "zipped"), "zip", copy.parent, copy.name)
    shutil.rmtree(copy)
    # Numba has no folder for an archive of another name.
    for name, cached in (("zipped.zip", 1), ("zipped.pyz", 0)):
        at = Path(archive).rename(copy.parent / name)
        for hits in (0, cached):
            code = f"import sys; sys.path.insert(0, {str(at)!r})\n{CALL}"
            result = run(copy, code, XDG_CACHE_HOME=str(copy.parent / name[-3:]))
            assert result.stdout.split() == ["12", str(hits)], result.stderr
            assert result.stderr.count("not cached on disk") == 1 - cached
        archive = at


FULL_DISK = """
from pathlib import Path
def full(*a): raise OSError(28, 'No space left on device')
Path.write_bytes = full
"""


def test_a_full_disk_while_saving_does_not_fail_the_call(copy):
    result = run(copy, FULL_DISK + CALL)
    assert result.stdout.split() == ["12", "0"], result.stderr
    assert result.stderr.count("No space left on device") == 1


@pytest.mark.parametrize(
    "other",
    [
        "import numba.core.caching as c; del c.CompileResultCacheImpl",
        "from numba.core.codegen import CPUCodegen as c; del c.magic_tuple",
        "from numba.core.compiler import CompileResult as c; del c._reduce",
    ],
)
def test_without_numbas_private_parts_kernels_run_uncached_with_one_warning(copy, other):
    for _ in range(2):
        result = run(copy, f"{other}\n{CALL}")
        assert result.stdout.split() == ["12", "0"], result.stderr
        assert result.stderr.count("not cached on disk") == 1


def test_old_caches_are_dropped_but_for_the_newest(copy):
    for version in range(12):
        write_callee(copy, version)
        assert run(copy).stdout.split() == [str(11 + version), "0"]
    folders = list((copy / "kv" / "kernels" / "__pycache__").glob("llmds_nb-*"))
    assert len(folders) == kernel_cache._KEEP_FOLDERS + 1


def test_every_kernel_is_stamped_with_its_own_file():
    for name in llmds_nb.__all__:  # kernels come with the structures that need them
        getattr(llmds_nb, name)
    importlib.import_module("llmds_nb.tools.replay.belady")
    ours = [k for k in jit.KERNELS if k.py_func.__module__.startswith("llmds_nb.")]
    assert len(ours) > 100
    for made in ours:
        files = kernel_cache.kernel_sources(ROOT, kernel_cache.domain_of(made.py_func.__module__))
        assert Path(made.py_func.__code__.co_filename) in files.values(), made.py_func.__module__


def test_fastmath_still_sees_nan():
    @kernel(fastmath=True)
    def is_nan(x):
        return np.isnan(x)

    assert is_nan(np.nan) and not is_nan(1.0)


def test_mul_hi_is_the_upper_half_of_the_product():
    @kernel
    def high(a, b):
        return mul_hi(a, b)

    rng = np.random.default_rng(0)
    for a, b in rng.integers(0, 2**64, (50, 2), dtype=np.uint64):
        assert int(high(a, b)) == int(a) * int(b) >> 64


def test_the_library_is_silent_by_default():
    handlers = logging.getLogger("llmds_nb").handlers
    assert handlers and all(isinstance(handler, logging.NullHandler) for handler in handlers)


def _first(handle, tokens):
    return handle + tokens[0]


TYPES = "int64, int32[::1]"
TOKENS = np.arange(3, dtype=np.int32)
OTHERS = [
    TOKENS.astype(np.int64), TOKENS.astype(np.float32), TOKENS[None], TOKENS[::2],
    [1, 2], [], None, "12", 2**70,
]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_a_kernel_takes_only_the_types_that_it_accepts(first):
    taking = kernel(_first, accepts=TYPES)
    if not first:
        assert taking(2, TOKENS) == 2
    read_only = TOKENS.copy()
    read_only.flags.writeable = False
    for other in [*OTHERS, read_only]:
        with pytest.raises(REFUSALS):
            taking(2, other)
    for handle in (1.5, True, "1", 2**70):
        with pytest.raises(REFUSALS):
            taking(handle, TOKENS)
    assert taking(2, TOKENS) == 2
    assert len(taking.signatures) == 1


def test_types_are_looked_at_in_every_call_where_numba_compiles_in_another_way():
    calls = []
    taking = jit._accept_only(lambda *args: calls.append(args), TYPES)
    taking(2, TOKENS)
    for other in OTHERS:
        with pytest.raises(TypeError, match="does not take"):
            taking(2, other)
    assert len(calls) == 1


def test_the_machine_code_of_a_kernel_can_be_called_by_itself():
    entry = entry_of(kernel(_first), 2, TOKENS)
    assert entry(5, TOKENS + 1) == 6


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float32, np.uint16])
@pytest.mark.parametrize("shape", [12, (12,), (3, 4), (2, 3, 2)])
def test_an_array_at_an_address_is_the_one_that_lies_there(dtype, shape):
    array = np.arange(12).reshape(shape).astype(dtype)

    @kernel(borrow=True)
    def double(address, shape, like):
        there = array_at(address, shape, like.dtype)
        for i, value in np.ndenumerate(there):
            there[i] = value + value
        return there.shape, there.strides

    assert double(array.ctypes.data, shape, array[:0]) == (array.shape, array.strides)
    assert (array == (np.arange(12).reshape(shape).astype(dtype) * 2).astype(dtype)).all()


def test_kernels_are_right_for_a_target_without_the_hosts_features():
    tests = str(Path(__file__).parents[1] / "hnsw" / "test_kernels.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_CPU_NAME": "generic"},
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "skipped" not in result.stdout
