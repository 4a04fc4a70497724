"""Who coordinates a study: one process at a time, and a dead one blocks nobody for long."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import UTC, datetime, timedelta

import psutil

from tuner.errors import TunerError
from tuner.store.base import Lease, Store

LEASE_SECONDS = 60.0


def take_lease(store: Store, study: str) -> str:
    """Become the study's coordinator; returns the owner's name.

    A coordinator of this host whose process is gone is succeeded at once.

    Raises:
        TunerError: another coordinator is alive.
    """
    owner = uuid.uuid4().hex
    held = renew_lease(store, study, owner)
    if held is not None and held.host == socket.gethostname() and not psutil.pid_exists(held.pid):
        store.release_lease(study, held.owner)
        held = renew_lease(store, study, owner)
    if held is not None:
        until = held.expires_at.astimezone().strftime("%H:%M:%S")
        raise TunerError(
            f"study {study!r} is run by process {held.pid} on {held.host} (its lease ends at"
            f" {until} unless renewed); `tuner study stop {study}` stops it"
        )
    return owner


def renew_lease(store: Store, study: str, owner: str) -> Lease | None:
    """Prolong the lease; None on success, else the live lease of another owner."""
    now = datetime.now(UTC)
    expires = now + timedelta(seconds=LEASE_SECONDS)
    host = socket.gethostname()
    lease = Lease(study=study, owner=owner, host=host, pid=os.getpid(), expires_at=expires)
    return store.acquire_lease(lease, now)


def is_alive(lease: Lease | None, now: datetime) -> bool:
    """Whether a coordinator is at work, as far as can be told from here."""
    if lease is None or lease.expires_at <= now:
        return False
    return lease.host != socket.gethostname() or psutil.pid_exists(lease.pid)
