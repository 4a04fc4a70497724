"""Kernels that the tests compile go to a folder of their own, which outlives the run."""

import pytest

from optimizers.kernels.build import compiler

# What kernels do is tested where they can be built; everything else holds for eager steps as well.
collect_ignore = [] if compiler() else ["test_engines.py", "test_kernels.py", "test_tables.py"]


@pytest.fixture(scope="session", autouse=True)
def kernels(request):
    """Compiled once, as for a user; the user's own cache neither helps nor is touched."""
    folder = request.config.cache.mkdir("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
