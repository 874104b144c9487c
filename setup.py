"""Builds the compiled codec where that is possible; everything else is in pyproject.toml.

The package works without the extension, so a machine with no compiler still installs it.
``SPOP_PURE=1`` leaves the extension out. ``SPOP_LINETRACE=1`` has it tell coverage of its lines.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = (
    "_typed_data",
    "_codec",
    "_headers",
    "_cache",
    "_intake",
    "_async_call",
    "_route",
    "_dispatch",
    "_port",
    "load/_acks",
    "server/_alarm",
)
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "freethreading_compatible": True,
    "auto_pickle": False,
}

SHARED = "spop._cython"
"""A module with what Cython would add to each of the others. They use none of its memoryviews."""

COLD = ("spop.load._acks", "spop.server._alarm", SHARED)
"""Those that no answer to a frame waits for."""

SMALL = [
    "-g0",
    "-fno-asynchronous-unwind-tables",
    # Gaps between code are a fortieth of a wheel.
    *(f"-fno-align-{place}" for place in ("functions", "jumps", "labels", "loops")),
]
STRIP = {"linux": ["-Wl,-s"], "darwin": ["-Wl,-S,-x"]}


class OptionalBuild(build_ext):
    """Builds what it can and says once what it could not."""

    def run(self) -> None:
        self.is_for_development = self.inplace or self.editable_mode  # setuptools resets `inplace`.
        try:
            super().run()
        except Exception as error:
            self.announce_pure(error)

    def build_extension(self, ext: Extension) -> None:
        if not self.is_for_development:  # It keeps its symbols.
            ext.extra_compile_args = [*ext.extra_compile_args, *SMALL]
            ext.extra_link_args = [*ext.extra_link_args, *STRIP.get(sys.platform, [])]
        super().build_extension(ext)

    def announce_pure(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(
            f"spop: the compiled codec was not built ({reason}); the pure-Python one is used",
            file=sys.stderr,
        )
        self.extensions.clear()


def extensions() -> list[Extension]:
    if os.environ.get("SPOP_PURE", "") not in ("", "0"):
        print("spop: SPOP_PURE is set; the pure-Python codec is used", file=sys.stderr)
        return []
    from Cython.Build import cythonize

    traced = bool(os.environ.get("SPOP_LINETRACE"))
    unoptimized = traced or "-O0" in os.environ.get("CFLAGS", "")  # Ours come behind those.

    sources = {f"spop.{name.replace('/', '.')}": f"spop/{name}.pyx" for name in MODULES}
    return cythonize(
        [
            Extension(
                name,
                [source],
                extra_compile_args=["-O0" if unoptimized else "-Os" if name in COLD else "-O3"],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if traced else [],
            )
            for name, source in (sources | {SHARED: "spop/_cython.c"}).items()
        ],
        compiler_directives=DIRECTIVES | {"linetrace": traced},
        shared_utility_qualified_name=SHARED,
        shared_utility_features_disabled=["MemoryView"],
        annotate=bool(os.environ.get("SPOP_ANNOTATE")),
        quiet=True,
    )


def repository() -> str:
    """The repository's address, which the one who builds a release knows: ``SPOP_REPOSITORY``."""
    return os.environ.get("SPOP_REPOSITORY", "").rstrip("/")


def links() -> dict[str, str]:
    """What an index page shows beside the README."""
    pages = {
        "Source": "",
        "Documentation": "/blob/main/docs/index.md",
        "Changes": "/blob/main/CHANGELOG.md",
    }
    return {name: repository() + page for name, page in pages.items()} if repository() else {}


def readme() -> str:
    """The README for an index page, where relative links lead nowhere.

    They lead to the repository that ``SPOP_REPOSITORY`` names. Without it they become plain text.
    """
    text = Path(__file__).with_name("README.md").read_text("utf-8")
    if home := repository():
        text = re.sub(r"(!\[[^]]*]\()(?!\w+:|#)", rf"\1{home}/raw/main/", text)
        return re.sub(r"((?<!!)\[[^]]*]\()(?!\w+:|#)", rf"\1{home}/blob/main/", text)
    text = re.sub(r"!\[[^]]*]\((?!\w+:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]*)]\((?!\w+:|#)[^)]*\)", r"\1", text)


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=links(),
)
