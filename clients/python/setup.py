"""Generates `kage.v1` from the repository's protocol while the package is built."""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# KAGE_PROTO says where it is when the package is built from a copy.
PROTO = Path(os.environ.get("KAGE_PROTO") or Path(__file__).resolve().parents[2] / "proto")


class GenerateThenBuild(build_py):
    """Writes the messages, their types and the stubs straight into the build folder."""

    def run(self) -> None:
        super().run()
        import grpc_tools
        from grpc_tools import protoc

        sources = sorted((PROTO / "kage" / "v1").glob("*.proto"))
        if not sources:
            raise SystemExit(f"no protocol at {PROTO}: build from a checkout of the whole repository")
        out = Path(self.build_lib)
        (out / "kage" / "v1").mkdir(parents=True, exist_ok=True)
        # The well-known types, which come with the compiler.
        known = Path(grpc_tools.__file__).parent / "_proto"
        kinds = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{PROTO}", f"-I{known}", *kinds, *map(str, sources)]) != 0:
            raise SystemExit("protoc failed; what it says is above")


setup(cmdclass={"build_py": GenerateThenBuild})
