"""Kernels: when they are compiled, where they are kept, and what happens without a compiler."""

import logging
import platform
import re
import subprocess

import pytest
import torch
from torch import nn

import optimizers
from optimizers.kernels import build, policy
from tests.optimizers.helpers import drive, problem
from tests.optimizers.test_engines import by_kernel
from tests.optimizers.test_kernels import step

# What becomes of the text ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["adamw", "lamb", "adafactor"])
def test_compilers_keep_what_asks_memory_ahead_of_time(rule):
    """It changes nothing, so they may drop it, and a step takes a tenth longer."""
    param = nn.Parameter(torch.ones(64, 64))
    opt = optimizers.create(rule, [param], engine="compiled")
    drive(opt, param, [torch.ones(64, 64)])
    command = [*build.compiler(), *build.flags(), "-S", "-x", "c++", "-o", "-", "-"]
    text = opt._planner.known[0].tables[0].kernel.text
    made = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    asking, function = set(), ""
    for line in made.splitlines():
        label = re.match(r"(_?[A-Za-z]\w*)[.\w]*:", line)
        function = label[1] if label else function
        asking |= {function} if "prefetch" in line else set()
    wanted = {"squ", "entries"} if platform.machine() == "x86_64" else set()
    assert all(any(part in name for name in asking) for part in wanted), asking


# When they are compiled ---------------------------------------------------------------------------


def test_ten_models_and_a_hundred_learning_rates_need_one_kernel(cache, compilations):
    for width in range(1, 11):
        layers = [nn.Linear(width, 3), nn.LayerNorm(3), nn.Conv2d(1, width, 2)]
        params = [param for layer in layers for param in layer.parameters()]
        decaying = {"params": params[:2], "weight_decay": 0.1}
        opt = optimizers.AdamW([decaying, {"params": params[2:], "weight_decay": 0.0}])
        opt.engine = "compiled"
        opt.load_state_dict(opt.state_dict())
        for number in range(10):
            opt.param_groups[0]["lr"] = 10.0 ** -(number + width / 10)
            opt.param_groups[1]["betas"] = (0.5 + number / 100, 0.9)
            for param in params:
                param.grad = torch.ones_like(param)
            opt.step()
        assert by_kernel(opt) == len(params)
    assert len(compilations) == 1
    assert sorted(cache.iterdir()) == [compilations[0]]


def test_a_warm_cache_compiles_nothing(cache, compilations, monkeypatch):
    first = step(optimizers.Lion)[1]
    monkeypatch.setattr(build, "_loaded", {})  # as in a new process
    assert torch.equal(step(optimizers.Lion)[1], first)
    assert len(compilations) == 1


def test_fused_takes_only_what_is_there(cache, compilations):
    opt, end = step(optimizers.Lion, "fused")
    assert by_kernel(opt) == len(compilations) == 0
    step(optimizers.Lion, "compiled")
    opt, again = step(optimizers.Lion, "fused")
    assert by_kernel(opt) == len(compilations) == 1
    torch.testing.assert_close(end, again, rtol=1e-12, atol=0)


def test_auto_compiles_where_it_pays(cache, compilations):
    opt, _ = step(optimizers.Lion, "auto")
    assert by_kernel(opt) == len(compilations) == 0
    assert opt.param_groups[0]["engine"] == "eager"
    opt, _ = step(optimizers.Lion, "auto", total_steps=1_000_000)
    assert by_kernel(opt) == len(compilations) == 1
    assert opt.param_groups[0]["engine"] == "compiled"
    opt, _ = step(optimizers.Lion, "auto")
    assert by_kernel(opt) == 1, "it is there now"


def test_auto_goes_on_as_it_began(cache):
    """A kernel that appears during a run, or between a run and its resumption, changes no bit."""
    start, grads = problem((50, 7), 6)
    ends = []
    for interrupted in (False, True):
        param = nn.Parameter(start.clone())
        opt = optimizers.AdamW([param], lr=0.1)
        drive(opt, param, grads[:3])
        if interrupted:
            step(optimizers.AdamW)  # somebody compiles it
            saved = opt.state_dict()
            opt = optimizers.AdamW([param], lr=0.1)
            opt.load_state_dict(saved)
        drive(opt, param, grads[3:])
        assert by_kernel(opt) == 0
        ends.append(param.detach())
    assert torch.equal(*ends)
    fresh = optimizers.AdamW([param], lr=0.1)
    drive(fresh, param, grads[:1])
    assert by_kernel(fresh) == 1


@pytest.mark.parametrize(
    ("entries", "tensors", "steps", "worth"),
    [(1000, 1, 100, False), (10**8, 1, None, True), (1000, 1, 10**6, True), (10**8, 1, 1, False)],
)
def test_when_compiling_pays(entries, tensors, steps, worth):
    params = [torch.empty(entries // tensors, device="meta")] * tensors
    assert policy.pays(1, policy.saving(params), steps) == worth


# Where they are kept ------------------------------------------------------------------------------


def test_the_cache_is_private(cache):
    step(optimizers.Lion)
    files = list(cache.iterdir())
    assert len(files) == 1
    assert all(path.stat().st_mode & 0o077 == 0 for path in [cache, *files])


def test_a_folder_that_others_can_write_to_is_not_used(cache, caplog, monkeypatch):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    monkeypatch.setattr(build, "_told", set())
    opt, _ = step(optimizers.Lion)
    assert by_kernel(opt) == 1
    assert not list(cache.iterdir())
    assert "is not private to this user" in caplog.text


def test_a_library_that_others_can_write_to_is_not_loaded(cache, monkeypatch):
    step(optimizers.Lion)
    next(cache.iterdir()).chmod(0o777)
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion)[0]) == 0


@pytest.mark.parametrize(
    "broken", [lambda whole: b"no library", lambda whole: whole[: len(whole) // 2], lambda _: b""]
)
def test_a_broken_library_is_built_again(broken, cache, monkeypatch, tmp_path):
    step(optimizers.Lion)
    [library] = cache.iterdir()
    # in another folder: of a path that is loaded already, the loader does not read the file again
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    path = build.cache() / library.name
    path.write_bytes(broken(library.read_bytes()))
    path.chmod(0o700)
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion)[0]) == 1
    assert path.read_bytes() == library.read_bytes()


def test_links_are_not_followed(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert build.private(tmp_path / "real")
    assert not build.private(tmp_path / "link")


# Without a compiler -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-compiler", "there is no C++ compiler"),
        ("g++ 'unfinished", "there is no C++ compiler"),
        ("false", "failed"),
    ],
)
def test_without_a_compiler_it_says_so_once(command, why, cache, monkeypatch, caplog):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(build, "_told", set())
    with caplog.at_level(logging.WARNING, "optimizers"):
        opt, end = step(optimizers.Lion)
        step(optimizers.Lion)
        step(optimizers.Lion, "auto")
    assert torch.equal(end, step(optimizers.Lion, "eager")[1])
    assert by_kernel(opt) == 0
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelname == "WARNING"
    assert why in caplog.text


@pytest.mark.parametrize(
    ("owner", "call"), [(build.Path, "write_text"), (build.os, "replace")], ids=["text", "library"]
)
def test_a_disk_that_is_full_stops_no_training(owner, call, cache, monkeypatch, caplog):
    real = getattr(owner, call)

    def full(place, *args, **kwargs):
        if "kernel." in str(place):
            raise OSError(28, "No space left on device")
        return real(place, *args, **kwargs)

    monkeypatch.setattr(owner, call, full)
    monkeypatch.setattr(build, "_told", set())
    opt, end = step(optimizers.Lion)
    assert by_kernel(opt) == 0
    assert torch.equal(end, step(optimizers.Lion, "eager")[1])
    assert "No space left on device" in caplog.text


def test_libraries_outlive_the_compiler(cache, monkeypatch, compilations):
    """An image can be built with one and run without."""
    step(optimizers.Lion)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion, "fused")[0]) == 1
    assert len(compilations) == 1


def test_a_compiler_that_knows_little_will_do(cache, monkeypatch, tmp_path):
    """Neither OpenMP nor the machine's own instructions are needed."""
    real = build.compiler()[0]
    poor = tmp_path / "poor"
    poor.write_text(
        '#!/bin/sh\ncase "$*" in *-fopenmp*|*-march*) echo error: unknown >&2; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    poor.chmod(0o755)
    monkeypatch.setenv("CXX", str(poor))
    opt, end = step(optimizers.Lion)
    assert by_kernel(opt) == 1
    monkeypatch.delenv("CXX")
    assert torch.equal(end, step(optimizers.Lion)[1])


@pytest.mark.parametrize("seen", ["AVX2", "DEFAULT"])
def test_what_the_process_does_not_see_of_the_machine_is_not_used(seen, cache, monkeypatch):
    """An emulated CPU (valgrind) knows less than the compiler, which runs beside it."""
    start, grads = problem((3, 777), 3, torch.float32)

    def end() -> torch.Tensor:
        param = nn.Parameter(start.clone())
        opt = optimizers.ADOPT([param], engine="compiled", clip_norm=1.0)
        drive(opt, param, grads)
        assert by_kernel(opt) == 1
        return param.detach()

    native, before = build.flags(), end()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: seen)
    monkeypatch.setattr(build, "_loaded", {})
    assert torch.equal(end(), before)
    kernels = [path.read_bytes() for path in cache.glob("**/*.so")]
    assert len({*kernels}) == (2 if native != build.flags() else 1)
