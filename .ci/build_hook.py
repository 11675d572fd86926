"""Hatchling's build hook: with LLMDS_PREBUILT set, a wheel brings its kernels along, compiled.

LLMDS_PREBUILT=1 compiles for this machine's default level, a list such as x86-64-v3,x86-64-v4 for
these. Without it, and for an editable install, the wheel is pure Python. What compiles is
`llmds_nb/tools/prebuild.py`.
"""

import os
import shutil
import subprocess
import sys
import tempfile

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags


class PrebuiltKernels(BuildHookInterface):
    """Puts the folder `_prebuilt` into the wheel."""

    folder = None

    @property
    def setting(self):
        """LLMDS_PREBUILT; "0" for a pure wheel."""
        return os.environ.get("LLMDS_PREBUILT", "0")

    def dependencies(self):
        """What the build environment needs: to compile, all that the package needs."""
        return [] if self.setting == "0" else self.metadata.core.dependencies

    def initialize(self, version, build_data):
        """Compile, before the wheel is written."""
        if self.setting == "0" or version == "editable":
            return
        self.folder = tempfile.TemporaryDirectory(prefix="llmds_nb-")
        source, target = (os.path.join(self.folder.name, name) for name in ("source", "prebuilt"))
        # A copy: pip takes a checkout that is installed as editable off the path of its builds.
        package = os.path.join(self.root, "llmds_nb")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, os.path.join(source, "llmds_nb"), ignore=ignored)
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        subprocess.run(
            [sys.executable, "-m", "llmds_nb.tools.prebuild", target, self.setting],
            env={**os.environ, "PYTHONPATH": path}, cwd=source, check=True,
        )  # fmt: skip
        build_data["force_include"][target] = "llmds_nb/_prebuilt"
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag(self.build_config.builder)

    def finalize(self, version, build_data, artifact_path):
        """Remove what was compiled, now in the wheel."""
        if self.folder is not None:
            self.folder.cleanup()


def wheel_tag(builder):
    """The tag of this Python minor and platform, with glibc of any version since 2014.

    The wheel has no shared library, so glibc matters only to Numba's own.
    """
    interpreter, abi, platform = builder.get_best_matching_tag().split("-")
    manylinux = platform.replace("linux_", "manylinux_2_17_")
    if manylinux in {tag.platform for tag in sys_tags()}:
        platform = manylinux
    return f"{interpreter}-{abi}-{platform}"
