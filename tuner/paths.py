"""Where results live on this machine, and how a URL is shown to people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# `user:password@` up to the last @ before the path; a password with a raw slash matches too, since
# hiding too much of a URL is better than hiding too little.
_USER_PASSWORD = re.compile(r"(://[^:/@\s]*):(?:[^/\s]*|\S*)@")
_SECRET_ARGUMENT = re.compile(r"([?&](?:\w*password|passwd|\w*token|\w*secret)=)[^&\s]*", re.I)


def mask_password(text: str) -> str:
    """Replace every password inside the URLs of a text by `***`."""
    return _SECRET_ARGUMENT.sub(r"\1***", _USER_PASSWORD.sub(r"\1:***@", text))


@dataclass(frozen=True)
class Home:
    """The folder that holds everything when no server is configured (`./.tuner` by default)."""

    root: Path

    @property
    def storage_url(self) -> str:
        """The study database."""
        return f"sqlite:///{self.root.absolute() / 'tuner.db'}"

    @property
    def mlflow_uri(self) -> str:
        """The local MLflow store."""
        return f"sqlite:///{self.root.absolute() / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Files that MLflow keeps: plots, reports."""
        return self.root / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """What interrupted trials go on from."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """What the workers print."""
        return self.root / "logs"

    @property
    def reports(self) -> Path:
        """HTML reports, one a study."""
        return self.root / "reports"

    @property
    def devices(self) -> Path:
        """Lock files of the GPUs that are in use on this machine."""
        return self.root / "devices"
