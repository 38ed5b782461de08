"""Generates the Python modules of `kumihimo.v1` beside the .proto files.

Called by the build (`pip install`, `pip wheel`) through setuptools' `build_py`; by hand: `python proto/generate.py`.
The generated files are git-ignored and never edited.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def generate() -> None:
    """Compile every .proto below this folder to messages, type stubs and gRPC stubs.

    Raises SystemExit with protoc's own message when a file is wrong.
    """
    sources = sorted(str(path) for path in ROOT.glob("kumihimo/**/*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    googleapis = _googleapis()
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{well_known}",
        f"-I{googleapis}",
        f"--python_out={ROOT}",
        f"--pyi_out={ROOT}",
        f"--grpc_python_out={ROOT}",
        *sources,
    ]
    if protoc.main(arguments):
        sys.exit("protoc refused the files above")


def _googleapis() -> str:
    """The folder that holds google/api/*.proto, shipped by googleapis-common-protos."""
    import google.api

    return str(Path(next(iter(google.api.__path__))).parent.parent)


class BuildPy(build_py):
    """`build_py` that generates before it collects."""

    def run(self) -> None:
        generate()
        super().run()


if __name__ == "__main__":
    generate()
