"""A Flask application that an IP reputation agent is asked about.

spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000
gunicorn --chdir examples --threads 8 web_flask:app
curl -i http://127.0.0.1:8000/
curl -i --interface 127.0.0.42 http://127.0.0.1:8000/
"""

import os
from pathlib import Path

from flask import Flask, request

from spop.engine import Engine
from spop.web import WSGIMiddleware, deny, set_header, var

app = Flask(__name__)
engine = Engine.from_file(
    Path(__file__).with_name("spoe.cfg"),
    backends={"agents": os.environ.get("AGENT", "127.0.0.1:9000")},
)
score = var("sess.iprep.ip_score")
app.wsgi_app = WSGIMiddleware(  # type: ignore[method-assign]
    app.wsgi_app,
    engine,
    http_request=[
        deny(body="Not from %[src].\n", when=score < 60),
        set_header("x-ip-score", score),
    ],
)


@app.get("/")
def home() -> str:
    return f"Your score is {request.headers.get('x-ip-score')}.\n"
