"""Which optimizer and schedule, with which settings, and how sure are we?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.lr_finder import find_lr as find_lr
    from tuner.task import Task as Task

__version__ = "0.1.0"
__all__ = ["Task", "__version__", "find_lr"]

_HOMES = {"Task": "tuner.task", "find_lr": "tuner.lr_finder"}


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for (`tuner --help` must be fast)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
