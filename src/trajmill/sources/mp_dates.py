"""Dates in the forms that documents of the Materials Project use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def utc_text(value: Any) -> str | None:
    """Return a date as `YYYY-MM-DDTHH:MM:SS`, UTC.

    Args:
        value: an ISO string (without an offset it is UTC), MongoDB's `{"$date": string or milliseconds}`, monty's
            `{"@class": "datetime", "string": ...}`, or a datetime.

    Returns:
        The date, None when there is none or it cannot be read.
    """
    if isinstance(value, Mapping):
        inner = value.get("$date", value.get("string"))
        return utc_text(inner.get("$numberLong") if isinstance(inner, Mapping) else inner)
    try:
        if isinstance(value, int | float):
            value = datetime.fromtimestamp(value / 1000, UTC)
        elif isinstance(value, str):
            value = datetime.fromtimestamp(int(value) / 1000, UTC) if value.isdigit() else datetime.fromisoformat(value)
        if not isinstance(value, datetime):
            return None
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return None
