"""What this machine lets a process use."""

from __future__ import annotations


def allotted_cores() -> int:
    """Cores that this process may use, by affinity and by the quota of its container."""
    from joblib import cpu_count

    return int(cpu_count())
