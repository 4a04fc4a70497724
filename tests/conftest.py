"""What holds for all tests: nobody's settings leak in, and each process keeps to one core."""

import os

# Read when numerical libraries are first imported, so it has to be set here.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in [name for name in os.environ if name.startswith(("TUNER_", "MLFLOW_TRACKING_"))]:
    del os.environ[name]
