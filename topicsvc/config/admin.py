"""Reads ``[admin]``: the endpoint for operators."""

from __future__ import annotations

from topicsvc.config.files import read_bearer_token
from topicsvc.config.toml_table import Table
from topicsvc.settings import OperatorSettings

__all__ = ["read_admin"]

_ENDPOINT = 'an endpoint, "tcp:9090:interface=127.0.0.1"'


def read_admin(table: Table) -> tuple[str | None, OperatorSettings]:
    """Read ``[admin]``, or its short form, ``admin = "tcp:9090"``.

    Args:
        table: the whole file.

    Returns:
        The endpoint, if there is one, and the other settings.
    """
    if not isinstance(table.given("admin"), dict | None):
        return table.text("admin", "", f"{_ENDPOINT}, or the table [admin]"), OperatorSettings()
    admin = table.table("admin")
    return admin.text("listen", "", _ENDPOINT), OperatorSettings(
        inspect=admin.flag("inspect", False),
        token=admin.file("token_file", read_bearer_token, None, required=False),
    )
