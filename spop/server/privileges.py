"""Users and groups by name, and becoming one who may do less."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable

from spop.options import Options


def check_privileges(options: Options) -> None:
    """Check before anything starts that the user and group exist and can be used.

    Raises:
        ValueError: one does not exist, or this process is not root's.
    """
    wanted = _ids(options)
    if wanted != (None, None) and os.geteuid() != 0:
        raise ValueError("user and group can be changed by root only")


def drop_privileges(options: Options) -> None:
    """Run as the user and the group of the options from now on, for good.

    The user's other groups come with it, unless the options name a group.
    """
    user, group = _ids(options)
    if group is not None:
        if user is not None and not options.group:
            os.initgroups(pwd.getpwuid(user).pw_name, group)
        else:
            os.setgroups([])
        os.setgid(group)
    if user is not None:
        os.setuid(user)


def user_id(name: str) -> int:
    """The number of a user.

    Raises:
        ValueError: there is no such user.
    """
    return _number_of("user", name, lambda: pwd.getpwnam(name).pw_uid)


def group_id(name: str) -> int:
    """The number of a group.

    Raises:
        ValueError: there is no such group.
    """
    return _number_of("group", name, lambda: grp.getgrnam(name).gr_gid)


def _number_of(kind: str, name: str, find: Callable[[], int]) -> int:
    if name.isascii() and name.isdigit():
        return _number(name)
    try:
        return find()
    except KeyError:
        raise ValueError(f"there is no {kind} {name!r}") from None


def _number(name: str) -> int:
    """A user's or group's number. The highest of 32 bits means none to the system."""
    if len(name) > 10 or int(name) >= 2**32 - 1:
        raise ValueError(f"{name} is no user or group: their numbers are below {2**32 - 1}")
    return int(name)


def _ids(options: Options) -> tuple[int | None, int | None]:
    user = user_id(options.user) if options.user else None
    group = group_id(options.group) if options.group else None
    if user is not None and group is None:
        try:
            group = pwd.getpwuid(user).pw_gid
        except KeyError:
            raise ValueError(f"user {options.user} has no entry: say its group too") from None
    return user, group
