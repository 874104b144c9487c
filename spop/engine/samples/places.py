"""Where in a stream's life samples are available: HAProxy's check points and sources.

A fetch declares its `Source`, which is available in some `Place`s. The reader of the configuration
compares them with the place of an event or rule. ``haproxy -dKsmp`` (2.6 and later) prints the same
table.
"""

from __future__ import annotations

from enum import Enum, IntFlag, auto


class Place(IntFlag):
    """The points where samples are taken, in the order in which a stream reaches them."""

    FE_CON_ACC = auto()
    FE_SES_ACC = auto()
    FE_REQ_CNT = auto()
    FE_HRQ_HDR = auto()
    FE_HRQ_BDY = auto()
    FE_SET_BCK = auto()
    BE_REQ_CNT = auto()
    BE_HRQ_HDR = auto()
    BE_HRQ_BDY = auto()
    BE_SET_SRV = auto()
    BE_SRV_CON = auto()
    BE_RES_CNT = auto()
    BE_HRS_HDR = auto()
    BE_HRS_BDY = auto()
    BE_STO_RUL = auto()
    FE_RES_CNT = auto()
    FE_HRS_HDR = auto()
    FE_HRS_BDY = auto()
    FE_LOG_END = auto()


def _span(first: Place, last: Place) -> Place:
    """All places from the first to the last."""
    return Place(2 * last - first)


_REQUEST = _span(Place.FE_REQ_CNT, Place.BE_SRV_CON)
_RESPONSE = _span(Place.BE_RES_CNT, Place.FE_HRS_BDY)


class Source(Enum):
    """What a fetch reads: a description for messages, and the places where it is available."""

    CONSTANT = "a constant", _span(Place.FE_CON_ACC, Place.FE_LOG_END)
    INTERNAL = "internal state", _span(Place.FE_CON_ACC, Place.FE_LOG_END)
    CONNECTION = "the client's connection", _span(Place.FE_CON_ACC, Place.FE_LOG_END)
    SESSION = "the client's session", _span(Place.FE_SES_ACC, Place.FE_LOG_END)
    BACKEND = "the backend", _span(Place.BE_REQ_CNT, Place.FE_LOG_END)
    REQUEST_KEPT = "what is kept of the request", _span(Place.FE_REQ_CNT, Place.FE_LOG_END)
    REQUEST_HEADERS = "the request's headers", _REQUEST
    REQUEST_BODY = "the request's body", _REQUEST
    RESPONSE_KEPT = "what is kept of the response", _span(Place.BE_RES_CNT, Place.FE_LOG_END)
    RESPONSE_HEADERS = "the response's headers", _RESPONSE
    RESPONSE_BODY = "the response's body", _RESPONSE
    HEADERS = "headers of the request or the response", _REQUEST | _RESPONSE

    def __init__(self, description: str, places: Place) -> None:
        self.description = description
        self.places = places
