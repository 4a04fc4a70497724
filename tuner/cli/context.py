"""What every command knows: where results go and how much to say."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.errors import UsageError
from tuner.paths import Home

if TYPE_CHECKING:
    from tuner.store.sql import SqlStore

CONFIG_FILE = Path("tuner.toml")
CONFIG_KEYS = ("home", "storage", "mlflow_uri")


@dataclass(frozen=True)
class Context:
    """The global options, resolved.

    Attributes:
        home: the folder of everything local.
        storage_url: the study database.
        mlflow_uri: the tracking server or store; None = MLflow is off.
        verbosity: -1 quiet, 0 normal, 1 and more for `-v`.
    """

    home: Home
    storage_url: str
    mlflow_uri: str | None
    verbosity: int = 0

    def open_store(self) -> SqlStore:
        """Open the study database, made or upgraded when needed.

        Raises:
            BackendError: it cannot be reached, is damaged, or is newer than this version.
        """
        from tuner.store.sql import open_store

        return open_store(self.storage_url)


def resolve(home: str, storage: str | None, mlflow_uri: str | None, verbosity: int) -> Context:
    """Fill in the local defaults; `none` as MLflow's URI turns MLflow off."""
    place = Home(Path(home))
    uri = mlflow_uri or place.mlflow_uri
    return Context(
        home=place,
        storage_url=storage or place.storage_url,
        mlflow_uri=None if uri.lower() == "none" else uri,
        verbosity=verbosity,
    )


def read_config(path: Path = CONFIG_FILE) -> dict[str, Any]:
    """Read the defaults of the global options from `tuner.toml`; no file means none.

    Raises:
        UsageError: not TOML, an unknown key, or a value that is no text.
    """
    if not path.exists():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for key, value in values.items():
        if key not in CONFIG_KEYS:
            raise UsageError(f"{path}: {key}: unknown key; allowed: {', '.join(CONFIG_KEYS)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {key} = {value!r}: allowed: text in quotes")
    return values


pass_context = click.make_pass_decorator(Context)
