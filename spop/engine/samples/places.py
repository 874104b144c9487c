"""Where in a stream's life samples are available: HAProxy's check points and sources.

A fetch says what it reads, its `Source`; that gives the `Place`s where it may stand. The
configuration's reader compares them with the place of an event or rule. ``haproxy -dKsmp``
prints the same table.
"""

from __future__ import annotations

from enum import Enum, IntFlag, auto


class Place(IntFlag):
    """The points where samples are taken, in the order in which a stream comes by."""

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
    """All places from one to another."""
    return Place(2 * last - first)


_REQUEST = _span(Place.FE_REQ_CNT, Place.BE_SRV_CON)
_RESPONSE = _span(Place.BE_RES_CNT, Place.FE_HRS_BDY)


class Source(Enum):
    """What a fetch reads, in words that an error can use, and the places that have it."""

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
