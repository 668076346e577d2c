"""Parameters that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ppdl_mq.config.toml_text import parse_argument

file_argument = click.argument("file", type=click.Path(path_type=Path))
config_option = click.option(
    "--config", "-c", type=click.Path(path_type=Path), required=True, help="The organisation's settings (peer.toml)."
)


def arguments_of(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse repeated KEY=VALUE options; values are TOML where they can be, else strings.

    Raises:
        click.UsageError: one is not of that form.
    """
    try:
        return dict(map(parse_argument, pairs))
    except ValueError as fault:
        raise click.UsageError(f"{fault}.") from None


def is_path(key: str, value: Any) -> bool:
    """Tell whether an argument is a path, by the rule of the data plug-ins."""
    return (key == "path" or key.endswith("_path")) and isinstance(value, str)
