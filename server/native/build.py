"""Compiles the native decoder. Needs a C++17 compiler (CXX, c++, g++ or clang++).

One source, compiled once per instruction set; which of the libraries is loaded is decided where they run, so an image
that was built on one machine is fast on another. A library's name carries the digest of its sources: after a change
of these the old ones are not loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARIES = Path(__file__).resolve().parent / "_lib"

# No -ffast-math: sums keep their order. Contraction gives fused multiply-adds, where the machine has them.
# Hidden and not unique: two variants in one process must not share a table or a static of the same name.
FLAGS = (
    "-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wl,-Bsymbolic",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
# Variant -> flags. The first is for any machine; the others are chosen at run time (lorachat_cpu_level).
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma", "-mbmi2"),
    "avx512": ("-mavx2", "-mfma", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
               "-mprefer-vector-width=512"),
}  # fmt: skip


class BuildError(Exception):
    """The libraries cannot be built here; str() says what to do."""


def source_digest() -> str:
    """Of everything the libraries are made from."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def library_path(variant: str, folder: Path = LIBRARIES) -> Path:
    return folder / f"lorachat-{variant}-{source_digest()}.so"


def variants_here() -> tuple[str, ...]:
    """The variants that can be compiled for this machine's architecture."""
    return tuple(VARIANTS) if platform.machine().lower() in ("x86_64", "amd64") else ("plain",)


def build(folder: Path = LIBRARIES) -> list[str]:
    """Compile what is missing; returns the variants that were compiled. Raises BuildError."""
    missing = [v for v in variants_here() if not library_path(v, folder).exists()]
    if missing:
        compiler = _compiler()
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda variant: _compile(compiler, variant, folder), missing))
        current = {library_path(variant, folder) for variant in VARIANTS}
        for old in set(folder.glob("lorachat-*.so")) - current:
            old.unlink(missing_ok=True)
    return missing


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return path
    raise BuildError(
        "no C++ compiler was found, so the server will compute with torch, several times slower."
        " Install one (Debian: apt-get install g++) or set CXX, then run `make native`."
    )


def _compile(compiler: str, variant: str, folder: Path) -> None:
    # Written under another name first: a library is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / "library.so"
        command = [
            compiler,
            *FLAGS,
            *VARIANTS[variant],
            str(SOURCES / "library.cpp"),
            "-o",
            str(target),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(
                f"{compiler} could not compile the {variant} variant:\n{result.stderr.strip()}"
            )
        target.rename(library_path(variant, folder))
