"""Makes the small tasks importable, as they are in a worker through the job's search path."""

import sys

from tests.jobs import TASKS

sys.path.insert(0, str(TASKS))
