"""What is collected where there is no compiler, and caches of kernels."""

import pytest

from optimizers.kernels import build

# What kernels do is tested where they can be built; everything else holds for eager steps as well.
KERNELS = ("build", "engines", "kernels", "reflections", "tables")
collect_ignore = [] if build.compiler() else [f"test_{name}.py" for name in KERNELS]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, as on a new machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "optimizer-tuner" / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """The libraries that were compiled."""
    done, real = [], build.compile_to
    monkeypatch.setattr(build, "compile_to", lambda *args: (done.append(args[0]), real(*args)))
    return done
