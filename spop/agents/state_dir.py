"""The setting `state_dir`: the folder where the processes of an agent share what they keep."""

from __future__ import annotations

import os
from pathlib import Path

from spop.errors import reason


def use_state_dir(folder: Path) -> None:
    """Make the folder, if there is none.

    Raises:
        ValueError: it can't be used. The message names the setting.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except FileExistsError:
        raise ValueError(f"state_dir: {folder} is no folder") from None
    except OSError as error:
        raise ValueError(f"state_dir: cannot use {folder}: {reason(error)}") from None
    if owner != os.geteuid():
        raise ValueError(f"state_dir: {folder} belongs to another user")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"state_dir: cannot write to {folder}")
