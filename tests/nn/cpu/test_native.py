"""Building and loading the C++ kernels."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lore.nn.cpu import native

COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
SOURCE = native.read_source()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
USE = """
import ctypes
from lore.nn.cpu import native
logits, norm = (ctypes.c_float * 2)(1.0, 1.0), (ctypes.c_float * 1)()
native.load_kernels().log_sum_float32(ctypes.addressof(logits), None, ctypes.addressof(norm), None, 1, 2)
assert abs(norm[0] - 1.6931472) < 1e-5, norm[0]
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty cache folder and a library that is not loaded yet; what was loaded before comes back after."""
    monkeypatch.delenv("LORE_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "PATIENCE", 600.0)  # the machine may be busy; no line is wanted for that
    native.load_kernels.cache_clear()
    yield
    native.load_kernels.cache_clear()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels, compiled once for all tests here."""
    return native._compile([COMPILER], SOURCE, tmp_path_factory.mktemp("compiled"))


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def compiler(monkeypatch, tmp_path, compiled):
    """Stands in for the compiler, quickly; returns the file with one line a call."""
    calls = tmp_path / "calls"
    calls.touch()
    copy = f'echo "$@" >> {calls}; while [ "$1" != -o ]; do shift; done; cp {compiled} "$2"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "copy", copy)))
    return calls


def calls_of(compiler):
    return compiler.read_text().splitlines()


def built(folder):
    return sorted(path.name for path in folder.iterdir())


def exported():
    """Name -> argument list of every function in the source's extern "C" sections."""
    body = SOURCE[SOURCE.index("#define EXPORT") :].replace("\\\n", " ")
    body = re.sub(r"^namespace \{.*?^\}  // namespace", "", body, flags=re.M | re.S)
    found = {}
    for name, arguments in re.findall(r"\b(?:void|long)\s+([\w#]+)\s*\(([^)]*)\)\s*\{", body):
        for kind in re.findall(r"^EXPORT\(\w+, (\w+)\)", SOURCE, re.M) if "##" in name else [""]:
            found[name.replace("##name", kind)] = [
                " ".join(x.split()) for x in arguments.split(",") if x.strip()
            ]
    return found


# without kernels


@needs_compiler
def test_zero_in_the_environment_turns_them_off_silently(monkeypatch, compiler, capsys):
    monkeypatch.setenv("LORE_NATIVE", "0")
    assert native.load_kernels() is None
    assert not calls_of(compiler) and capsys.readouterr() == ("", "")


def test_without_a_compiler_one_line_names_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.load_kernels() is None
    assert native.load_kernels() is None
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert "no C++ compiler found" in err and "apt install g++" in err


def test_a_compiler_that_fails_gives_its_message(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", str(script(tmp_path / "broken", "echo 'unknown processor 7' >&2; exit 3")))
    assert native.load_kernels() is None
    assert "unknown processor 7" in capsys.readouterr().err
    assert built(tmp_path / "cache" / "lore") == []


@pytest.mark.parametrize("command", ["missing", "not executable"])
def test_a_compiler_that_cannot_be_started_gives_a_message(monkeypatch, tmp_path, capsys, command):
    path = tmp_path / "compiler"
    if command == "not executable":
        path.touch(0o600)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CXX", str(path))
    assert native.load_kernels() is None
    assert str(path) in capsys.readouterr().err


def test_a_compiler_whose_output_is_no_library_gives_a_message(monkeypatch, tmp_path, capsys):
    text = 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'
    monkeypatch.setenv("CXX", str(script(tmp_path / "wrong", text)))
    assert native.load_kernels() is None
    assert "kernels" in capsys.readouterr().err


# with kernels


@needs_compiler
def test_the_compiler_of_this_machine_builds_them_into_the_cache_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", COMPILER)
    library = native.load_kernels()
    folder = tmp_path / "cache" / "lore"
    assert isinstance(library, ctypes.CDLL) and Path(library._name).parent == folder
    assert built(folder) == [Path(library._name).name]
    assert native.load_kernels() is library and capsys.readouterr() == ("", "")


@needs_compiler
def test_what_was_built_is_not_built_again(compiler, tmp_path):
    first = native.load_kernels()._name
    stamp = Path(first).stat().st_mtime_ns
    native.load_kernels.cache_clear()
    assert native.load_kernels()._name == first and Path(first).stat().st_mtime_ns == stamp
    assert len(calls_of(compiler)) == 1
    assert built(tmp_path / "cache" / "lore") == [Path(first).name]


@needs_compiler
@pytest.mark.parametrize("changed", ["source", "flags", "compiler", "processor"])
def test_another_source_compiler_or_machine_builds_another_file(monkeypatch, compiler, tmp_path, changed):
    first, source = native._build(SOURCE), SOURCE
    if changed == "source":
        source += "\n"
    elif changed == "flags":
        monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, "-g"])
    elif changed == "compiler":
        monkeypatch.setenv("CXX", str(shutil.copy(tmp_path / "copy", tmp_path / "other")))
    else:
        monkeypatch.setattr(native, "_processor", lambda: "another")
    second = native._build(source)
    assert first != second and first.exists() and second.exists()
    assert len(calls_of(compiler)) == 2


@needs_compiler
def test_the_cache_folder_is_below_home_by_default(monkeypatch, compiler, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path(native.load_kernels()._name).parent == tmp_path / "home" / ".cache" / "lore"


@needs_compiler
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root can write anywhere")
@pytest.mark.parametrize("there", [False, True])
def test_a_cache_folder_without_write_permission_still_works(monkeypatch, compiler, tmp_path, capsys, there):
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    cache = tmp_path / "cache"
    folder = cache / "lore" if there else cache
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        assert native.load_kernels() is not None
    finally:
        folder.chmod(0o700)
    assert built(folder) == [] and capsys.readouterr() == ("", "")


@needs_compiler
def test_a_cache_folder_that_cannot_be_made_still_works(monkeypatch, compiler, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    library = native.load_kernels()
    assert library is not None and Path(library._name).parent.parent == tmp_path
    assert capsys.readouterr() == ("", "")


@needs_compiler
def test_a_compiler_may_come_with_arguments(monkeypatch, compiler, tmp_path):
    monkeypatch.setenv("CXX", f"env LORE=1 {COMPILER}")
    assert native.load_kernels() is not None


@needs_compiler
def test_two_processes_that_build_at_once_both_work(compiler, tmp_path):
    ready = tmp_path / "ready"
    ready.mkdir()
    wait = f'touch {ready}/$$; until [ "$(ls {ready} | wc -l)" -ge 2 ]; do sleep 0.05; done'
    path = script(tmp_path / "together", f'{wait}; exec {tmp_path / "copy"} "$@"')
    env = os.environ | {"CXX": str(path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    jobs = [
        subprocess.Popen([sys.executable, "-c", USE], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0] and errors == ["", ""], errors
    assert len(calls_of(compiler)) == 2
    (name,) = built(tmp_path / "cache" / "lore")
    assert name.endswith(".so")


@needs_compiler
def test_a_slow_compiler_is_waited_for_and_announced(monkeypatch, tmp_path, compiler, capsys):
    """There is no time limit that a busy machine could hit: the kernels are used, whatever it takes."""
    monkeypatch.setattr(native, "PATIENCE", 0.05)
    monkeypatch.setenv("CXX", str(script(tmp_path / "slow", f'sleep 1; exec {tmp_path / "copy"} "$@"')))
    assert native.load_kernels() is not None
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "building the CPU kernels" in err


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "one bit", "longer", "nonsense"])
def test_a_damaged_library_in_the_cache_is_built_again(compiler, tmp_path, capsys, damage):
    path = native._build(SOURCE)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "half": whole[:middle],
            "last byte": whole[:-1],
            "one bit": whole[:middle] + bytes([whole[middle] ^ 8]) + whole[middle + 1 :],
            "longer": whole + b"\0",
            "nonsense": b"nonsense",
        }[damage]
    )
    assert native.load_kernels() is not None
    assert path.read_bytes() == whole and len(calls_of(compiler)) == 2
    assert built(tmp_path / "cache" / "lore") == [path.name]
    assert f"{path} is damaged" in capsys.readouterr().err


# argument types


@needs_compiler
def test_every_exported_function_has_its_argument_types(compiler):
    library, functions = native.load_kernels(), exported()
    assert {"norm_silu_float32", "laprop_bfloat16", "gru_back_float32"} < set(functions)
    for name, arguments in functions.items():
        function = getattr(library, name)
        assert function.restype is (None if arguments else ctypes.c_long)
        assert len(function.argtypes) == len(arguments)
        for argument, kind in zip(arguments, function.argtypes, strict=True):
            word = argument.rsplit(" ", 1)[0]
            plain = {"long": ctypes.c_long, "float": ctypes.c_float}
            assert kind is (ctypes.c_void_p if word.endswith("*") else plain[word]), (name, argument)


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="no nm")
def test_the_library_exports_these_functions_and_no_more(compiled):
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", compiled], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines() if line.split()[-2] == "T"}
    assert names - {"_init", "_fini"} == set(exported())
