"""What holds for all tests: nobody's settings leak in, and each process keeps to one core."""

import gc
import os
import sys

import pytest

# Read when numerical libraries are first imported, so it has to be set here.
os.environ["OMP_NUM_THREADS"] = "1"
# The workers of studies take all cores that they may use, and so does each process of pytest: there
# are more threads than cores, and a thread that waits must not keep a core from one that works.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in [name for name in os.environ if name.startswith(("TUNER_", "MLFLOW_TRACKING_"))]:
    del os.environ[name]
# The many processes that tests start would each compile the packages, and each of pytest's the
# tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until all tests are found: few objects of those are ever garbage


def pytest_ignore_collect(collection_path, config):
    """Where slow tests are left out, files that hold no other tests are not even imported.

    The frameworks that they try would take every process of pytest seconds.
    """
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        lines = collection_path.read_text(encoding="utf-8").splitlines()
        return any(line.startswith("pytestmark = pytest.mark.slow") for line in lines) or None
    return None


def pytest_collection_finish():
    """What modules and tests hold stays to the end: the collector need not look at it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def kernels(request):
    """Kernels are compiled once for all tests and the processes they start, and outlive the run.

    The user's own cache neither helps nor is touched.
    """
    folder = request.config.cache.mkdir("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
