"""Gives requests the score of a model, of scikit-learn or ONNX.

The model runs in a process of its own, which takes many requests in one call.
"""

from __future__ import annotations

import collections
import functools
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spop import Agent, Batch, Message
from spop.metrics import Counter

Feature = Callable[[Message], float]
Predict = Callable[[list[list[float]]], list[float]]


@dataclass
class Settings:
    """The table ``[settings]``.

    Attributes:
        model: file of the model: ``.onnx``, or else what joblib has written.
        features: the model's inputs, in its order.
        positive: index of the class whose probability is the score.
        scale: the score is the probability times this, rounded.
        missing: the value of a feature whose argument is missing.
    """

    model: Path
    features: list[str] = field(default_factory=list)
    positive: int = -1
    scale: int = 100
    missing: float = 0.0

    def __post_init__(self) -> None:
        if not self.model.is_file():
            raise ValueError(f"model: {str(self.model)!r} is no file")
        if self.scale < 1:
            raise ValueError(f"scale: {self.scale}, 1 at least is needed")
        if not self.features:
            raise ValueError("features: none is named")
        for name in self.features:
            feature_of(name, 0.0)


agent: Agent = Agent("score", config=Settings)
deciles: list[Counter] = [
    agent.counter(
        "score_requests", "Requests by their score, in tenths of the scale.", tenth=str(n)
    )
    for n in range(10)
]


# --- features ---


def _share(text: str, belongs: Callable[[str], bool]) -> float:
    return sum(map(belongs, text)) / len(text) if text else 0.0


def _entropy(text: str) -> float:
    """Bits for each character."""
    shares = [count / len(text) for count in collections.Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


MEASURES: dict[str, Callable[[str], float]] = {
    "length": len,
    "digits": lambda text: _share(text, str.isdigit),
    "capitals": lambda text: _share(text, str.isupper),
    "special": lambda text: _share(text, lambda each: not each.isalnum()),
    "entropy": _entropy,
}
"""What a text can be measured by, for a feature ``ARGUMENT.MEASURE``."""


def feature_of(name: str, missing: float) -> Feature:
    """The function that gets a feature of a message.

    Args:
        name: ``ARGUMENT`` is a number. ``ARGUMENT.MEASURE`` is one of `MEASURES` of a text.
            ``ARGUMENT=TEXT`` is 1.0 where the argument is that text.
        missing: what it is without the argument, or with one of another type.

    Raises:
        ValueError: there is no such measure.
    """
    argument, equals, text = name.partition("=")
    if equals:
        return lambda message: float(_text(message.get(argument)) == text)
    argument, dot, measure = name.rpartition(".")
    if not dot:
        return lambda message: _number(message.get(name), missing)
    if measure not in MEASURES:
        raise ValueError(f"features: {name!r}: {measure!r} is not one of {', '.join(MEASURES)}")

    def measured(message: Message) -> float:
        text = _text(message.get(argument))
        return missing if text is None else float(MEASURES[measure](text))

    return measured


def _number(value: object, missing: float) -> float:
    return float(value) if isinstance(value, int | float) else missing


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else None


# --- models ---


def load(path: Path, inputs: int, positive: int) -> Predict:
    """The function that predicts, of the model in a file.

    Raises:
        ValueError: the model has another number of inputs.
        Exception: the file has no model, or the package for it is missing.
    """
    predict, wanted = (_onnx if path.suffix == ".onnx" else _joblib)(path, positive)
    if wanted not in (None, inputs):
        raise ValueError(
            f"the model {path} has {wanted} inputs, and settings.features has {inputs}"
        )
    return predict


def _joblib(path: Path, positive: int) -> tuple[Predict, int | None]:
    import joblib
    import numpy

    model = joblib.load(path)
    classifies = hasattr(model, "predict_proba")
    function = model.predict_proba if classifies else model.predict

    def predict(rows: list[list[float]]) -> list[float]:
        found = function(numpy.array(rows))
        return _scores(found, positive)

    return predict, getattr(model, "n_features_in_", None)


def _onnx(path: Path, positive: int) -> tuple[Predict, int | None]:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # Its threads would take the processors of HAProxy.
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    output = session.get_outputs()[-1].name  # Behind the label, if there is one.
    columns = given.shape[1] if len(given.shape) == 2 else None

    def predict(rows: list[list[float]]) -> list[float]:
        (found,) = session.run([output], {given.name: numpy.array(rows, numpy.float32)})
        return _scores(found, positive)

    return predict, columns if isinstance(columns, int) else None


def _scores(found: Any, positive: int) -> list[float]:
    """The score of each row: of probabilities by class, or of one value."""
    if len(found) and isinstance(found[0], dict):  # ONNX models often have such maps.
        found = [list(each.values()) for each in found]
    return [float(row[positive]) if hasattr(row, "__len__") else float(row) for row in found]


# --- messages ---


@functools.cache
def _prepared() -> tuple[Predict, list[Feature]]:
    """The model and its features, of this process."""
    config: Settings = agent.config
    predict = load(config.model, len(config.features), config.positive)
    predict([[config.missing] * len(config.features)])  # The first call takes longest.
    return predict, [feature_of(name, config.missing) for name in config.features]


@agent.lifespan
def model() -> Iterator[None]:
    """Load the model before the first message comes, in the process that uses it."""
    if multiprocessing.parent_process() is not None:
        _prepared()
    yield


@agent.message("score", batch=Batch(size=64, wait=0.002, executor="process"), sets=["txn.score"])
def score(messages: list[Message]) -> list[dict[str, object] | ValueError]:
    predict, features = _prepared()
    found = predict([[feature(message) for feature in features] for message in messages])
    return [_answer(each) for each in found]


def _answer(score: float) -> dict[str, object] | ValueError:
    """The answer to a message, or the failure of this message alone."""
    if math.isfinite(score):
        return {"txn.score": round(score * agent.config.scale)}
    return ValueError(f"the model's score is {score}")


@agent.wrap
async def count(call: Callable[[], Any], message: Message) -> Any:
    """Count the score, in the worker: what the process counts, nobody sees."""
    answer = await call()
    tenth = 10 * answer["txn.score"] // agent.config.scale
    deciles[min(max(tenth, 0), 9)].add()
    return answer
