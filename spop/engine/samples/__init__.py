"""HAProxy's sample expressions: compiled once from text, evaluated for each stream.

`compile_expression` is the entrance. `fetch` and `converter` add functions of a user's own;
their annotations say which HAProxy types and arguments they take.
"""

from spop.engine.samples import converters, fetches
from spop.engine.samples.errors import SampleError
from spop.engine.samples.expression import Expression, compile_expression
from spop.engine.samples.places import Place, Source
from spop.engine.samples.registry import converter, fetch
from spop.engine.samples.types import SampleType

__all__ = [
    "Expression",
    "Place",
    "SampleError",
    "SampleType",
    "Source",
    "compile_expression",
    "converter",
    "converters",
    "fetch",
    "fetches",
]
