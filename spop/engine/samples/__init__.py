"""HAProxy's sample expressions (section 7 of its manual).

`compile_expression` compiles an expression once; the result is evaluated for each stream. `fetch`
and `converter` register functions of your own. Their annotations say which types and arguments they
take.
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
