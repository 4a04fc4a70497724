"""A task is what the user brings: a model, data, a loss. The tuner brings everything else.

    def build():
        return Task(
            model=lambda: nn.Linear(64, 10),
            train=train_set,
            val=val_set,
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        )

`studies.digits:build` names it; modules are found in the given folders, then on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from tuner.errors import TaskError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

_OURS = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "optimizers"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model factory, data, a loss and metrics.

    Attributes:
        model: returns a fresh model; random numbers are seeded before every call.
        train, val: map-style data sets, with `__len__` and `__getitem__`.
        loss: mean loss of a batch, a scalar tensor; called in train and in eval mode.
        metrics: named means over a batch, called in eval mode without gradients; they are averaged
            over the validation data.
        evaluate: named numbers over all validation batches at once, for what is no mean over
            batches (AUC, F1); called as `metrics` is, in one more pass over the data.
        collate: list of examples -> batch; PyTorch's `default_collate` if not given.
        param_groups: parameter groups of the model; if not given, biases and normalisation
            weights do not decay.
        batch_size_of: weight of a batch when means are averaged, such as its number of tokens;
            the number of examples if not given.
        val_batch_size: examples of one validation batch.

    Raises:
        TypeError: a field cannot be used.
    """

    model: Callable[[], nn.Module]
    train: Dataset[Any]
    val: Dataset[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    metrics: Callable[[nn.Module, Any], Mapping[str, Any]] | None = None
    evaluate: Callable[[nn.Module, Iterator[Any]], Mapping[str, Any]] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    param_groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None
    batch_size_of: Callable[[Any], float] | None = None
    val_batch_size: int = 512

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            data = getattr(self, name)
            if not (hasattr(data, "__len__") and _has_items(data)):
                raise TypeError(
                    f"{name} must be a map-style data set with __len__ and __getitem__, "
                    f"not {type(data).__name__}"
                )
            if len(data) == 0:
                raise TypeError(f"{name} is empty")
        for name in ("model", "loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, not {getattr(self, name)!r}")
        if _is_module(self.model):
            raise TypeError("model must be a function that returns a fresh model: `lambda: Net()`")


def load_task(spec: str, search_path: Sequence[str] = ()) -> Task:
    """Import `package.module:function` and call the function.

    Folders of `search_path` come before `sys.path` and stay there, for later imports of the task.

    Raises:
        UsageError: the specification is malformed or names nothing, or no Task is returned.
        TaskError: the user's code raised.
    """
    module_name, separator, attribute = spec.partition(":")
    if not (separator and module_name and attribute.isidentifier()):
        raise UsageError(f'task = "{spec}": expected "package.module:function"')
    sys.path[:0] = [folder for folder in search_path if folder not in sys.path]
    build = _attribute(_module(module_name, spec), attribute, spec)
    if not callable(build):
        raise UsageError(f'task = "{spec}": {attribute} is a {type(build).__name__}, no function')
    with user_code(f"{spec} raised"):
        task = build()
    if not isinstance(task, Task):
        raise UsageError(f'task = "{spec}": returned a {type(task).__name__}, expected a Task')
    return task


@contextlib.contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Turn what the user's code raises into a TaskError with the user's part of the stack.

    Running out of memory is no fault of the code and passes unchanged.
    """
    try:
        yield
    except TaskError:
        raise
    except SystemExit as error:
        raise TaskError(f"{doing} SystemExit", traceback=users_traceback(error)) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        message = f"{doing} {one_line(error)}"
        raise TaskError(message, traceback=users_traceback(error)) from error


def one_number(loss: object, error: type[Exception]) -> Tensor:
    """A loss as a 0-D tensor; raises `error` when it is no tensor or has more than one entry."""
    import torch

    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss.reshape(())
    found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
    raise error(f"loss must return one number as a tensor, not {found}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    texts = ("DefaultCPUAllocator", "out of memory", "not enough memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
    )


def one_line(error: BaseException) -> str:
    """`ValueError: what went wrong`, whatever the length of the message."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def users_traceback(error: BaseException) -> str:
    """The stack from the first frame that is neither ours nor the import system's."""
    stack = error.__traceback__
    while stack is not None and _is_ours(stack):
        stack = stack.tb_next
    return "".join(traceback.format_exception(type(error), error, stack, chain=stack is not None))


def _is_ours(stack: TracebackType) -> bool:
    file = stack.tb_frame.f_code.co_filename
    return file.startswith((*_OURS, "<frozen importlib")) or file == importlib.__file__


def _is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _has_items(value: object) -> bool:
    """Whether a class says how to get an item; torch's own, which every data set has, does not."""
    base = sys.modules.get("torch.utils.data")
    none = (None, base.Dataset.__getitem__) if base else (None,)
    return getattr(type(value), "__getitem__", None) not in none


def _module(name: str, spec: str) -> ModuleType:
    with user_code(f"importing {name} raised"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise
            place = "the current directory or PYTHONPATH"
            message = f'task = "{spec}": no module {missing!r} in {place}'
    raise UsageError(message + _near(missing, _modules_beside(missing)))


def _attribute(module: ModuleType, name: str, spec: str) -> Any:
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        message = f'task = "{spec}": {module.__name__} has no {name!r}'
        raise UsageError(message + _near(name, public))
    return getattr(module, name)


def _modules_beside(name: str) -> list[str]:
    """Modules and packages that could have been meant by a name that was not found."""
    parent, _, _ = name.rpartition(".")
    above = sys.modules.get(parent)
    folders = sys.path if above is None else list(getattr(above, "__path__", ()))
    files = [file for folder in folders for file in Path(folder or ".").glob("*")]
    stems = {file.stem for file in files if file.suffix == ".py" or (file / "__init__.py").exists()}
    return sorted(f"{parent}.{stem}" if parent else stem for stem in stems)


def _near(word: str, words: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
