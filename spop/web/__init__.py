"""ASGI and WSGI middleware: agents decide about the requests and responses of an application.

An engine asks the agents. Rules, with the names of HAProxy's, act on the variables that agents set.
`ASGIMiddleware` takes an `spop.engine.AsyncEngine`, `WSGIMiddleware` an `spop.engine.Engine`.
"""

from spop.web.asgi import ASGIMiddleware
from spop.web.conditions import Condition, Variable, agent_failed, var
from spop.web.rules import (
    Rule,
    add_header,
    add_headers_bin,
    allow,
    del_header,
    del_headers_bin,
    deny,
    redirect,
    send_group,
    set_header,
    set_headers_bin,
    set_var,
)
from spop.web.wsgi import WSGIMiddleware

__all__ = [
    "ASGIMiddleware",
    "Condition",
    "Rule",
    "Variable",
    "WSGIMiddleware",
    "add_header",
    "add_headers_bin",
    "agent_failed",
    "allow",
    "del_header",
    "del_headers_bin",
    "deny",
    "redirect",
    "send_group",
    "set_header",
    "set_headers_bin",
    "set_var",
    "var",
]
