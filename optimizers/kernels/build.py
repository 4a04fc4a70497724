"""From C++ to a loaded library, at most once per text, compiler and machine.

Libraries wait in ``$XDG_CACHE_HOME/optimizer-tuner/kernels`` (``~/.cache`` without it). Loading one
is running it, so the folder has to be this user's own and closed to others; a folder of this
process alone takes its place where that cannot be.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

logger = logging.getLogger("optimizers")

# No contraction: every operation rounds as IEEE says, on every CPU and in every vector width.
FLAGS = (
    *("-O3", "-shared", "-fPIC", "-fopenmp", "-march=native", "-ffp-contract=off"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-w"),
)
OPTIONAL = ("-march=native", "-fopenmp")  # dropped where a compiler does not know them
# For an x86 CPU, per what torch sees of it. That may be less than the compiler sees: it may be
# emulated (valgrind), or torch be told to take it for an older one ($ATEN_CPU_CAPABILITY). Left
# alone, compilers use half of AVX-512's width, which takes up to a third longer in the cache.
CPU_FLAGS = {
    "AVX512": ("-mprefer-vector-width=512",),
    "AVX2": ("-mno-avx512f",),
    "DEFAULT": ("-mno-avx",),
}
COMPILERS = ("g++", "clang++", "c++")
SECONDS = 120  # that a compiler may take

_loaded: dict[str, ctypes.CDLL] = {}
_lock = threading.Lock()
_told: set[str] = set()


class NoKernel(Exception):
    """A kernel cannot be had here; says why in one line."""


def tell_once(message: str) -> None:
    """Log a warning the first time in this process."""
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def compiler() -> list[str] | None:
    """The C++ compiler's command: ``$CXX``, or the first on the path; None without one."""
    return find_compiler(os.environ.get("CXX"), os.environ.get("PATH"))


@functools.cache
def find_compiler(wanted: str | None, path: str | None) -> list[str] | None:
    """As `compiler`, for these values of the environment."""
    try:
        given = shlex.split(wanted or "")
    except ValueError:  # a quotation without an end
        return None
    for command in [given] if wanted else [[name] for name in COMPILERS]:
        found = shutil.which(command[0], path=path) if command else None
        if found:
            return [found, *command[1:]]
    return None


@functools.cache
def machine() -> str:
    """What -march=native depends on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = (line for line in info.split("\n\n")[0].splitlines())
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))]
    return "\n".join([platform.machine(), *kept])


def flags() -> tuple[str, ...]:
    """What the compiler is told."""
    seen = torch.backends.cpu.get_cpu_capability() if platform.machine() == "x86_64" else ""
    return (*FLAGS, *CPU_FLAGS.get(seen, ()))


def private(folder: Path) -> bool:
    """Whether a folder or file is this user's and nobody else may write to it."""
    about = folder.lstat()
    own = about.st_uid == os.getuid() if hasattr(os, "getuid") else True
    return own and not stat.S_ISLNK(about.st_mode) and not about.st_mode & 0o022


@functools.cache
def find_cache(base: str | None, home: str | None) -> Path:
    """The folder of the libraries, for these values of the environment."""
    try:
        root = Path(base) if base else Path(home or Path.home()) / ".cache"
        folder = root / "optimizer-tuner" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private(folder) and os.access(folder, os.W_OK):
            return folder
        reason = "is not private to this user"
    except (OSError, RuntimeError) as error:
        reason = str(error)
    tell_once(f"kernels are built anew in every process: the cache folder {reason}")
    return Path(tempfile.mkdtemp(prefix="optimizer-kernels-"))


def cache() -> Path:
    """The folder of the libraries."""
    return find_cache(os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


def identity(command: list[str]) -> str:
    """What a compiler of the same name may differ in."""
    about = os.stat(os.path.realpath(command[0]))
    return f"{command} {about.st_size} {about.st_mtime_ns}"


def digest(*parts: str) -> str:
    """A short name for a list of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def path_of(text: str, name: str) -> Path:
    """Where the library of a text is, or would be.

    Without a compiler any library of this text will do: images may be built where there is one.
    """
    stem = f"{name}-{digest(text, *flags(), machine())}"
    command = compiler()
    if command is None:
        return next(cache().glob(f"{stem}-*.so"), cache() / f"{stem}.so")
    return cache() / f"{stem}-{digest(identity(command))[:8]}.so"


def ready(text: str, name: str) -> bool:
    """Whether `load` would have nothing to compile."""
    path = path_of(text, name)
    return str(path) in _loaded or path.exists()


def compile_to(path: Path, text: str) -> None:
    """Compile a text into a library, which appears all at once.

    Raises NoKernel without a compiler or when it fails.
    """
    command = compiler()
    if command is None:
        raise NoKernel("there is no C++ compiler (g++, clang++, or $CXX)")
    error = ""
    fewer = ([flag for flag in FLAGS if flag not in out] for out in (OPTIONAL[:1], OPTIONAL))
    for own in (flags(), *fewer):
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
                source.write_text(text)
                done = subprocess.run(
                    [*command, *own, "-o", str(library), str(source)],
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                    stdin=subprocess.DEVNULL,
                )
                if done.returncode == 0:
                    library.chmod(0o700)
                    os.replace(library, path)
                    return
        except (OSError, subprocess.TimeoutExpired) as failure:  # such as a disk that is full
            raise NoKernel(f"the C++ compiler {command[0]} failed: {failure}") from failure
        error = next((line for line in done.stderr.splitlines() if "error" in line), "")
    raise NoKernel(f"the C++ compiler {command[0]} failed: {error}")


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library; raises OSError when it is cut short or of another system.

    Of an ELF file that ends before its table of sections does, the loader maps pages that are not
    there, and touching one ends the process.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) == 64 and head.startswith(b"\x7fELF\x02\x01"):
        table, size, count = struct.unpack_from("<40xQ10xHH", head)
        if path.stat().st_size < table + size * count:
            raise OSError("it is cut short")
    return ctypes.CDLL(str(path))


def load(text: str, name: str) -> ctypes.CDLL:
    """The library of a text, compiled if it is not there yet.

    Raises NoKernel when that is not possible.
    """
    with _lock:
        path = path_of(text, name)
        if str(path) not in _loaded:
            if not path.exists():
                compile_to(path, text)
            if not private(path):
                raise NoKernel(f"{path} is not private to this user")
            try:
                library = open_library(path)
            except OSError:
                compile_to(path, text)
                try:
                    library = open_library(path)
                except OSError as error:
                    raise NoKernel(f"{path} cannot be loaded: {error}") from error
            _loaded[str(path)] = library
        return _loaded[str(path)]
