"""A Django project that an IP reputation agent is asked about, under ASGI or WSGI.

spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000
uvicorn --app-dir examples web_django:asgi
gunicorn --chdir examples --threads 8 web_django:wsgi
curl -i http://127.0.0.1:8000/
curl -i --interface 127.0.0.42 http://127.0.0.1:8000/
"""

import os
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from spop.engine import AsyncEngine, Engine
from spop.web import ASGIMiddleware, WSGIMiddleware, deny, set_header, var

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])


def home(request: HttpRequest) -> HttpResponse:
    score = request.headers.get("x-ip-score")
    return HttpResponse(f"Your score is {score}.\n", content_type="text/plain")


urlpatterns = [path("", home)]

SPOE = Path(__file__).with_name("spoe.cfg")
AGENTS = {"agents": os.environ.get("AGENT", "127.0.0.1:9000")}
score = var("sess.iprep.ip_score")
policy = [
    deny(body="Not from %[src].\n", when=score < 60),
    set_header("x-ip-score", score),
]
asgi = ASGIMiddleware(
    get_asgi_application(),
    AsyncEngine.from_file(SPOE, backends=AGENTS),
    http_request=policy,
)
wsgi = WSGIMiddleware(
    get_wsgi_application(),
    Engine.from_file(SPOE, backends=AGENTS),
    http_request=policy,
)
