"""What is collected where there is no compiler."""

from optimizers.kernels.build import compiler

# What kernels do is tested where they can be built; everything else holds for eager steps as well.
collect_ignore = (
    [] if compiler() else ["test_build.py", "test_engines.py", "test_kernels.py", "test_tables.py"]
)
