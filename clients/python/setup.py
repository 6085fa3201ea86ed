"""Generates `kage.v1` from the repository's protocol while the package is built."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent


def protocol() -> Path:
    """The folder of the protocol: a source archive has it inside, a checkout has it at its top, and
    KAGE_PROTO says where it is when the package is built from a copy."""
    if named := os.environ.get("KAGE_PROTO"):
        return Path(named)
    inside = HERE / "proto"
    return inside if inside.is_dir() else HERE.parents[1] / "proto"


class ArchiveWithProtocol(sdist):
    """Puts the protocol into the source archive, which can be built from nothing else then."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for source in sorted((protocol() / "kage" / "v1").glob("*.proto")):
            to = Path(base_dir) / "proto" / "kage" / "v1"
            to.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to / source.name)


class GenerateThenBuild(build_py):
    """Writes the messages, their types and the stubs straight into the build folder."""

    def run(self) -> None:
        super().run()
        import grpc_tools
        from grpc_tools import protoc

        proto = protocol()
        sources = sorted((proto / "kage" / "v1").glob("*.proto"))
        if not sources:
            raise SystemExit(f"no protocol at {proto}: build from a checkout of the whole repository, or from a source archive")
        out = Path(self.build_lib)
        (out / "kage" / "v1").mkdir(parents=True, exist_ok=True)
        # The well-known types, which come with the compiler.
        known = Path(grpc_tools.__file__).parent / "_proto"
        kinds = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{proto}", f"-I{known}", *kinds, *map(str, sources)]) != 0:
            raise SystemExit("protoc failed; what it says is above")


setup(cmdclass={"build_py": GenerateThenBuild, "sdist": ArchiveWithProtocol})
