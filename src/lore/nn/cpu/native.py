"""Builds kernels.cpp, scan.cpp and dense.cpp on first use and loads them.

This takes some seconds, once a machine and version.

Without a C++ compiler, or with LORE_NATIVE=0, `load_kernels()` is None and lore.nn.fused computes the same
with torch operations; a gradient step then takes about twice as long.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

SOURCES = ("kernels.cpp", "scan.cpp", "dense.cpp")  # built as one file
# No -ffast-math: infinities and NaN must stay what they are.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]
SIGNATURE = re.compile(r"^(?:    )?(?:void|long) (\w+_(?:##name|float32|bfloat16))\(([^{]*)\) \{", re.M)
PATIENCE = 10.0  # seconds of building before a line says so
KINDS = {"long": ctypes.c_long, "float": ctypes.c_float}

_in_use = True


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels with their argument types, or None where they cannot be had."""
    if os.environ.get("LORE_NATIVE", "1") == "0":
        return None
    source = read_source()
    try:
        return _declare(ctypes.CDLL(str(_build(source))), source)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        print(f"lore: CPU kernels not built, training is slower: {reason}".strip(), file=sys.stderr)
        return None


@contextmanager
def torch_only() -> Iterator[None]:
    """Within it, everything is computed by torch operations."""
    global _in_use
    before, _in_use = _in_use, False
    try:
        yield
    finally:
        _in_use = before


def kernels_in_use() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had or are not wanted."""
    return load_kernels() if _in_use else None


def read_source() -> str:
    """All kernels as one C++ file."""
    return "".join(f'#line 1 "{name}"\n{files("lore.nn.cpu").joinpath(name).read_text()}' for name in SOURCES)


def _build(source: str) -> Path:
    """The library for this source, compiler and processor: from the cache if it is whole there, else built.

    Its name ends in the checksum of its content, so that one rename publishes both, and a file that was cut
    short or damaged afterwards is found out.

    Args:
        source: all kernels as one C++ file.

    Raises:
        OSError: there is no compiler, or no folder to write to.
        subprocess.CalledProcessError: the compiler refused the source.
    """
    compiler = (
        shlex.split(os.environ.get("CXX", "")) or list(filter(shutil.which, ("c++", "g++", "clang++")))[:1]
    )
    if not compiler:
        raise OSError("no C++ compiler found (Debian, Ubuntu: apt install g++)")
    key = "\n".join([source, *FLAGS, *compiler, _processor()])
    stem = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = _writable_folder()
    for built in sorted(folder.glob(f"{stem}-*.so")):
        if built.name == f"{stem}-{_checksum(built)}.so":
            return built
        print(f"lore: {built} is damaged; building it again", file=sys.stderr)
        built.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # several jobs may start at once
        fresh = _compile(compiler, source, Path(scratch))
        built = folder / f"{stem}-{_checksum(fresh)}.so"
        os.replace(fresh, built)
    return built


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _writable_folder() -> Path:
    """The user's cache, or a folder of the user's among the temporary files where that cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lore"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, full, or no home
        folder = Path(tempfile.gettempdir()) / f"lore-{os.getuid() if hasattr(os, 'getuid') else 'kernels'}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user") from None
        return folder


def _compile(compiler: list[str], source: str, folder: Path) -> Path:
    """Build kernels.so in `folder`. Without a time limit: on a busy machine it takes longer, and says so."""
    (folder / "kernels.cpp").write_text(source)
    command = [*compiler, *FLAGS, "-o", "kernels.so", "kernels.cpp"]
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, text=True, stdout=silent, stderr=subprocess.PIPE) as process:
        try:
            errors = _await(process)
        except BaseException:  # an interrupt: the compiler ends with this process
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
    return folder / "kernels.so"


def _await(process: subprocess.Popen[str]) -> str:
    """What the compiler wrote to stderr, once it has ended."""
    try:
        return process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        print("lore: building the CPU kernels, once a machine and version", file=sys.stderr, flush=True)
        return process.communicate()[1]


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return "".join(
            sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", info.read_text(), re.M)))
        )
    return f"{platform.machine()} {platform.processor()} {platform.version()}"


def _declare(lib: ctypes.CDLL, source: str) -> ctypes.CDLL:
    """Argument types from the source's own signatures: pointers are void*, the rest long or float."""
    for name, arguments in SIGNATURE.findall(source.replace("\\\n", "\n")):
        types = [
            ctypes.c_void_p if "*" in argument else KINDS[argument.split()[-2]]
            for argument in filter(None, arguments.split(","))
        ]
        for full in {name.replace("##name", kind) for kind in ("float32", "bfloat16")}:
            function = getattr(lib, full)
            function.argtypes, function.restype = types, None if types else ctypes.c_long
    return lib
