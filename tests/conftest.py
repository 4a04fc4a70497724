"""What holds for all tests: nobody's settings leak in, and each process keeps to one core."""

import os

import pytest

# Read when numerical libraries are first imported, so it has to be set here.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in [name for name in os.environ if name.startswith(("TUNER_", "MLFLOW_TRACKING_"))]:
    del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def kernels(request):
    """Kernels are compiled once for all tests and the processes they start, and outlive the run.

    The user's own cache neither helps nor is touched.
    """
    folder = request.config.cache.mkdir("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
