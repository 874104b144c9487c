"""What HAProxy has: tables made from its programs and its manual, by version.

``ci/haproxy_keywords.py`` makes the tables. They are read when they are first asked for.
"""

from spop.engine.haproxy.keywords import Branch, Keyword, Keywords, keywords_of

__all__ = ["Branch", "Keyword", "Keywords", "keywords_of"]
