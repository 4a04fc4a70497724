"""The memory bound: what it costs to move a rule's arrays once and compute next to nothing.

One pass reads the gradient and rewrites the parameter and each array of state, 4 + 8·(1 + arrays)
bytes per float32 parameter. On a CPU it is a small loop in C++; without a compiler, and on other
devices, torch's in-place operations over the same bytes, which is a little slower. Reading
the gradients once more for their norm is not part of it.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

SOURCE = r"""
template <int K> static void run(float** a, const float* g, long from, long to) {
  float* __restrict b[K];
  for (int k = 0; k < K; k++) b[k] = a[k];
  for (long i = from; i < to; i++) {
    const float s = g[i];
    for (int k = 0; k < K; k++) b[k][i] = b[k][i] * 0.9f + s;
  }
}
extern "C" void traffic(int k, float** a, const float* g, long from, long to) {
  switch (k) {
    case 1: return run<1>(a, g, from, to);
    case 2: return run<2>(a, g, from, to);
    case 3: return run<3>(a, g, from, to);
    case 4: return run<4>(a, g, from, to);
    case 5: return run<5>(a, g, from, to);
    default: return run<6>(a, g, from, to);
  }
}
"""
MOST = 6


@cache
def kernel() -> Callable[..., None] | None:
    """The loop in C++, or None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="traffic"))
    (folder / "traffic.cpp").write_text(SOURCE)
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o"]
    subprocess.run(
        [*command, folder / "traffic.so", folder / "traffic.cpp"], check=True, capture_output=True
    )
    library = ctypes.CDLL(str(folder / "traffic.so"))
    shutil.rmtree(folder)
    function = library.traffic
    function.argtypes = [
        ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_long, ctypes.c_long
    ]  # fmt: skip
    function.restype = None
    return function


def traffic(parameters: int, arrays: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """A pass over a gradient that is read and this many arrays that are rewritten."""
    grad = torch.rand(parameters, device=device, dtype=dtype)
    state = [torch.rand(parameters, device=device, dtype=dtype) for _ in range(arrays)]
    loop = kernel() if device == "cpu" and dtype == torch.float32 and arrays <= MOST else None
    if loop is None:
        return lambda: in_place(grad, state)
    pointers = (ctypes.c_void_p * arrays)(*(array.data_ptr() for array in state))
    threads = torch.get_num_threads()
    edges = [parameters * index // threads for index in range(threads + 1)]

    def run() -> None:  # the threads are new ones, so that torch's do not spin beside them
        workers = [
            threading.Thread(target=loop, args=(arrays, pointers, grad.data_ptr(), first, last))
            for first, last in itertools.pairwise(edges)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    keep = state  # the pointers do not

    def passes() -> None:
        run()
        assert keep is state

    return passes


def in_place(grad: torch.Tensor, state: list[torch.Tensor]) -> None:
    grad.sum()
    for array in state:
        array.mul_(0.9)
