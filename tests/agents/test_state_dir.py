"""The setting `state_dir`: a folder that others own, or that can't be written to, is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spop.agents.state_dir import use_state_dir


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path.stat().st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ValueError, match=f"^state_dir: {tmp_path} belongs to another user$"):
        use_state_dir(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    with pytest.raises(ValueError, match=f"^state_dir: cannot write to {tmp_path}$"):
        use_state_dir(tmp_path)


def test_a_folder_that_is_not_there_is_made_for_its_user_alone(tmp_path: Path) -> None:
    use_state_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
