"""Prebuilt kernels serve where they fit, and are never used where they do not."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba.core import config

import llmds_nb
from llmds_nb._core import kernel_cache, prebuilt
from llmds_nb._core.jit import KERNELS
from llmds_nb.tools import info, prebuild

pytestmark = pytest.mark.skipif(kernel_cache.KernelCache is None, reason="no kernel cache here")

ROOT = Path(llmds_nb.__file__).parent
MODULE = """
import numpy as np
from ..._core.jit import kernel

@kernel
def total(values, scale):
    out = 0.0
    for value in values:
        out += value * scale + 1
    return out
"""
CALL = """
import numpy as np
from llmds_nb._core import kernel_cache, prebuilt
from llmds_nb.kv.kernels.made import total
result = total(np.arange(40.0), 2.0)
print(result, kernel_cache.compiled_functions(), sum(total.stats.cache_hits.values()))
"""
HIDE = """
from llvmlite import binding
has = binding.get_host_cpu_features()
has.update(dict.fromkeys({}, False))
binding.get_host_cpu_features = lambda: has
"""
RIGHT = 1600.0
SERVED, COMPILED = [str(RIGHT), "0", "1"], [str(RIGHT), "1", "0"]
LEVELS = [name for name in prebuilt.LEVELS if not prebuilt.missing_features(name)]
BEST = LEVELS[0]


def run(package, code=CALL, *, writable=False, **env):
    """Run code on the package at a path; where no cache is writable but for `writable`."""
    blocked = package.parent / "file"
    blocked.touch()
    places = {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked / "x")}
    places["NUMBA_CACHE_DIR"] = str(package.parent / "cache" if writable else blocked / "x")
    # Python takes old bytecode for a file that is edited twice in a second and keeps its size.
    own = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {**os.environ, **own, **places, **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=package.parent
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small package with one kernel, prebuilt for all levels of this machine."""
    package = tmp_path_factory.mktemp("built") / "llmds_nb"
    shutil.copytree(ROOT / "_core", package / "_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "errors.py", package)
    (package / "kv" / "kernels").mkdir(parents=True)
    for folder in (package, package / "kv", package / "kv" / "kernels"):
        (folder / "__init__.py").touch()
    (package / "kv" / "kernels" / "made.py").write_text(MODULE)
    # Also root, who may write into a read-only folder, cannot write into this one.
    (package / "kv" / "kernels" / "__pycache__").touch()
    for level in LEVELS:
        result = run(package, writable=True, **prebuild.environment_of(level))
        assert result.stdout.split() == COMPILED, result.stderr
        prebuild.collect(package.parent / "cache", package / prebuilt.FOLDER, level)
        shutil.rmtree(package.parent / "cache")
    return package


@pytest.fixture
def package(built, tmp_path):
    """A copy in another place than where it was compiled."""
    return Path(shutil.copytree(built, tmp_path / "elsewhere" / "llmds_nb"))


def files_of(package, level=BEST):
    return sorted((package / prebuilt.FOLDER / level).rglob("*.nbc"))


def test_they_serve_where_nothing_is_writable(package):
    for _ in range(2):
        result = run(package)
        assert result.stdout.split() == SERVED and not result.stderr


def test_they_serve_from_a_zipped_package(package):
    archive = shutil.make_archive(str(package.parent / "zipped"), "zip", package.parent, "llmds_nb")
    shutil.rmtree(package)
    result = run(package, f"import sys; sys.path.insert(0, {archive!r})\n{CALL}")
    assert result.stdout.split() == SERVED and not result.stderr


def test_they_serve_several_processes_at_once(package):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run(package, writable=True), range(3)))
    assert [result.stdout.split() for result in results] == [SERVED] * 3


@pytest.mark.parametrize("level", LEVELS)
def test_the_best_level_that_the_cpu_has_serves(package, level):
    better = LEVELS[: LEVELS.index(level)]
    hidden = {name for other in better for name in prebuilt.LEVELS[other]}
    hidden -= set(prebuilt.LEVELS[level])
    code = HIDE.format(sorted(hidden)) + CALL + "print(prebuilt.choose()[0].name)"
    assert run(package, code).stdout.split() == [*SERVED, level]


@pytest.mark.skipif(len(LEVELS) < 2, reason="the generic level fits every CPU")
def test_none_serves_a_cpu_that_lacks_features(package):
    manifest = package / prebuilt.FOLDER / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generic"', '"unknown level"'))
    hidden = sorted({name for features in prebuilt.LEVELS.values() for name in features})
    result = run(package, HIDE.format(hidden) + CALL + "print(prebuilt.choose()[1])")
    assert result.stdout.split()[:3] == COMPILED
    assert "lacks features" in result.stdout


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"LLMDS_PREBUILT": "0"}, "LLMDS_PREBUILT=0"),
        ({"NUMBA_CPU_NAME": "x86-64-v2"}, "NUMBA_CPU_NAME"),
        ({"NUMBA_CPU_FEATURES": ""}, "NUMBA_CPU_FEATURES"),
        ({"NUMBA_OPT": "1"}, None),  # the folder fits, its stamps do not
        ({"NUMBA_BOUNDSCHECK": "0" if config.BOUNDSCHECK else "1"}, None),
    ],
)
def test_another_target_or_flag_compiles(package, env, reason):
    result = run(package, f"{CALL}\nprint(prebuilt.choose()[1])", **env)
    assert result.stdout.split()[:3] == COMPILED, result.stderr
    assert (reason or "") in result.stdout


def test_a_target_that_is_a_level_is_served(package):
    assert run(package, NUMBA_CPU_NAME="generic").stdout.split() == SERVED


@pytest.mark.parametrize("name", [*prebuilt.VERSIONS, "triple"])
def test_another_version_compiles_even_under_a_forged_manifest(package, name):
    manifest = package / prebuilt.FOLDER / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text) | {name: "another"}))
    result = run(package, f"{CALL}\nprint(prebuilt.choose()[1])")
    assert result.stdout.split()[:3] == COMPILED, result.stderr
    assert f"for {name} another" in result.stdout
    # This process is the one with another version, and the manifest says that it fits.
    if name != "triple":
        code = f"from llmds_nb._core import prebuilt\nprebuilt.VERSIONS[{name!r}] = 'another'\n"
        result = run(package, code + CALL)
        assert result.stdout.split() == COMPILED, result.stderr


def test_changed_sources_compile_even_with_the_old_code_under_the_new_name(package):
    source = package / "kv" / "kernels" / "made.py"
    source.write_text(MODULE.replace("scale + 1", "scale + 2"))
    changed = [str(RIGHT + 40), "1", "0"]
    assert run(package).stdout.split() == changed
    assert run(package, writable=True, LLMDS_PREBUILT="0").stdout.split() == changed
    (compiled,) = (package.parent / "cache").rglob("*.nbc")
    new = package / prebuilt.FOLDER / BEST / compiled.parent.name.removeprefix("llmds_nb-")
    new.mkdir()
    (old,) = files_of(package)
    key = "from llmds_nb.kv.kernels.made import total\nfrom numba.core.registry import cpu_target\n"
    key += "from llmds_nb._core import prebuilt\nimport numba\ncache = total._cache\n"
    key += "args = (numba.float64[::1], numba.float64)\n"
    key += "code = cache._index_key(args, cpu_target.target_context.codegen())[2]\n"
    key += "print(cache._file(cache._key(args, prebuilt.choose()[0].target, code)))"
    name = run(package, key).stdout.strip()
    assert name.endswith(".nbc") and name != old.name
    shutil.copyfile(old, new / name)
    assert run(package).stdout.split() == changed
    # The place and name are those that would be read: with the code of this source they serve.
    shutil.rmtree(package.parent / "cache")
    run(package, writable=True, **prebuild.environment_of(BEST))
    (right,) = (package.parent / "cache").rglob("*.nbc")
    assert right.name == name
    shutil.copyfile(right, new / name)
    assert run(package).stdout.split() == [str(RIGHT + 40), "0", "1"]


def test_code_of_another_level_under_this_ones_name_compiles(package):
    if len(LEVELS) < 2:
        pytest.skip("one level here")
    (here,), (other,) = files_of(package), files_of(package, LEVELS[-1])
    shutil.copyfile(other, here)
    assert run(package).stdout.split() == COMPILED


def damage(content, how):
    middle = len(content) // 2
    if how == "flipped":
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return content[: {"empty": 0, "head": 20, "truncated": len(content) - 1}[how]]


@pytest.mark.parametrize("how", ["empty", "head", "truncated", "flipped"])
def test_a_damaged_file_compiles_with_one_warning(package, how):
    (file,) = files_of(package)
    file.write_bytes(damage(file.read_bytes(), how))
    result = run(package, writable=True)
    assert result.stdout.split() == COMPILED
    assert len(result.stderr.splitlines()) == 1 and "damaged" in result.stderr
    assert run(package, writable=True).stdout.split() == SERVED  # by the user's cache


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"levels": 3}', '{"levels": {}}', "\x00\ufffd"]
)
def test_a_damaged_manifest_compiles_with_one_warning(package, text):
    (package / prebuilt.FOLDER / "manifest.json").write_text(text)
    result = run(package, writable=True)
    assert result.stdout.split() == COMPILED
    assert len(result.stderr.splitlines()) == 1 and "damaged" in result.stderr


def test_a_missing_folder_compiles_without_a_warning(package):
    shutil.rmtree(package / prebuilt.FOLDER)
    result = run(package, f"{CALL}\nprint(prebuilt.choose()[1])", writable=True)
    assert result.stdout.split()[:3] == COMPILED and not result.stderr
    assert "no prebuilt kernels" in result.stdout


def test_code_for_this_very_cpu_comes_first(package):
    assert run(package, writable=True, LLMDS_PREBUILT="0").stdout.split() == COMPILED
    for file in files_of(package):
        file.write_bytes(b"")
    result = run(package, writable=True)
    assert result.stdout.split() == SERVED and not result.stderr


def test_levels_that_can_be_built():
    assert prebuild.levels_of("generic") == ["generic"]
    assert prebuild.levels_of("1")[0] in prebuilt.LEVELS
    assert prebuild.levels_of(",".join(LEVELS)) == LEVELS
    with pytest.raises(ValueError, match="'yes' is none of"):
        prebuild.levels_of("generic,yes")


def test_info_tells_what_serves(tmp_path, monkeypatch):
    def describe():
        return dict(info.describe())["kernels"]

    monkeypatch.setattr(prebuilt, "choose", lambda: (None, "there is a reason"))
    assert describe() == "compiled for this CPU: there is a reason"
    level = prebuilt.Level("generic", ("", "", ""), 3, tmp_path)
    monkeypatch.setattr(info, "kernel_cache", lambda: (None, []))
    monkeypatch.setattr(prebuilt, "choose", lambda: (level, ""))
    here = tmp_path / sorted(kernel_cache.stamps(KERNELS))[0]
    here.mkdir()
    for name in "abc":
        kernel_cache.write_kernel(here / name, "key", b"data")
    assert describe() == "prebuilt for generic: 3 of 3"
    (here / "a").write_bytes(b"damaged")
    assert describe() == "prebuilt for generic: 2 of 3; 1 are damaged"
    (tmp_path / "another stamp").mkdir()
    assert describe().endswith("sources or Numba's flags have changed")
    monkeypatch.setattr(info, "kernel_cache", lambda: ("a folder", [here / "b"]))
    assert describe().endswith("those in the kernel cache come first")
