"""A Starlette application that an IP reputation agent is asked about.

spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000
uvicorn --app-dir examples web_starlette:app
curl -i http://127.0.0.1:8000/
curl -i --interface 127.0.0.42 http://127.0.0.1:8000/
"""

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from spop.engine import AsyncEngine
from spop.web import ASGIMiddleware, deny, set_header, var


def engine() -> AsyncEngine:
    agents = os.environ.get("AGENT", "127.0.0.1:9000")
    return AsyncEngine.from_file(Path(__file__).with_name("spoe.cfg"), backends={"agents": agents})


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Your score is {request.headers.get('x-ip-score')}.\n")


score = var("sess.iprep.ip_score")
policy = Middleware(
    ASGIMiddleware,
    engine=engine,
    http_request=[
        deny(body="Not from %[src].\n", when=score < 60),
        set_header("x-ip-score", score),
    ],
)
app = Starlette(routes=[Route("/", home)], middleware=[policy])
