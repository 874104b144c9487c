"""Headers: what is read from HAProxy's two forms, what is sent, on both twins."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spop import Ack, Message, codec
from spop.errors import InvalidFrameError

TEXT = "host: a.example\r\nX-Tag: one\r\nx-tag: two\r\nempty: \r\n\r\n"
BINARY = b"\x04host\x09a.example\x05X-Tag\x03one\x05x-tag\x03two\x05empty\x00\x00\x00"
PAIRS = [("host", "a.example"), ("X-Tag", "one"), ("x-tag", "two"), ("empty", "")]
FORMS = {"text": TEXT, "binary": BINARY, "pairs": PAIRS}

tokens = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,300}", fullmatch=True)
raw_values = st.binary(max_size=300).map(lambda v: v.translate(None, b"\r\n\0").strip(b" \t"))
raw_fields = st.lists(st.tuples(tokens.map(str.encode), raw_values), max_size=12)


def twins() -> list[Any]:
    """For properties, which take no fixtures."""
    from spop import _headers_py

    found = [_headers_py.Headers]
    if codec.IMPLEMENTATION == "c":
        from spop import _headers  # type: ignore[attr-defined]

        found.append(_headers.Headers)
    return found


@pytest.fixture(params=FORMS)
def headers(headers_twin: ModuleType, request: pytest.FixtureRequest) -> Any:
    """The same fields in each form that they come in."""
    return headers_twin.Headers(FORMS[request.param])


# --- reading ---


def test_names_are_found_in_any_case(headers: Any) -> None:
    assert headers["HOST"] == headers.get("Host") == headers.get(b"hOST") == "a.example"
    assert "X-TAG" in headers
    assert b"empty" in headers
    assert "tag" not in headers


def test_the_first_value_counts_and_none_are_joined(headers: Any) -> None:
    assert headers["x-tag"] == headers.get("x-tag") == "one"
    assert headers.getlist("x-tag") == ["one", "two"]
    assert headers["empty"] == ""
    assert headers.getlist("empty") == [""]


def test_what_is_missing_is_a_key_error_or_the_default(headers: Any) -> None:
    with pytest.raises(KeyError, match="cookie"):
        headers["cookie"]
    assert headers.get("cookie") is None
    assert headers.get("cookie", "-") == "-"
    assert headers.getlist("cookie") == []


def test_fields_keep_order_case_and_repeats(headers: Any) -> None:
    assert headers.items() == PAIRS
    assert list(headers) == [name for name, _ in PAIRS]
    assert headers.raw == [(name.encode(), value.encode()) for name, value in PAIRS]
    assert len(headers) == 4


def test_headers_without_fields_are_empty_and_false(headers_twin: ModuleType) -> None:
    for fields in ("", "\r\n", b"\0\0", [], {}):
        headers = headers_twin.Headers(fields)
        assert (len(headers), headers.items(), bool(headers)) == (0, [], False)
    assert headers_twin.Headers() == headers


def test_a_line_without_name_or_colon_is_passed_over(headers_twin: ModuleType) -> None:
    headers = headers_twin.Headers("junk\r\na: 1\r\n\r\n:b\r\nc:2\nd:\t 3 \t\r\ne: x:y")
    assert headers.items() == [("a", "1"), ("c", "2"), ("d", "3"), ("e", "x:y")]


def test_text_that_is_no_utf8_survives(headers_twin: ModuleType) -> None:
    headers = headers_twin.Headers("a: \udcff\r\n")
    assert (headers["a"], headers.raw) == ("\udcff", [(b"a", b"\xff")])
    assert headers_twin.Headers([("a", "\udcff")]) == headers_twin.Headers([(b"a", b"\xff")])
    assert headers_twin.Headers(b"\1a\1\xff\0\0")["a"] == "\udcff"


def test_case_is_that_of_ascii(headers_twin: ModuleType) -> None:
    headers = headers_twin.Headers([("É[@", "1")])
    assert "É[@" in headers
    assert "é[@" not in headers
    assert "É{`" not in headers


def test_a_binary_list_ends_at_its_empty_strings(headers_twin: ModuleType) -> None:
    assert headers_twin.Headers(BINARY + b"\x05junk").items() == PAIRS
    assert headers_twin.Headers(bytearray(BINARY)).items() == PAIRS
    assert headers_twin.Headers(memoryview(BINARY)).items() == PAIRS


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1a\1b",
        b"\1a\1b\0",
        b"\5ab",
        b"\1a\5b\0\0",
        b"\xf0",
        b"\1a\xff\xff",
        b"\xff" * 12,
        b"\0\1a",
    ],
)
def test_a_malformed_binary_list_is_invalid(headers_twin: ModuleType, raw: bytes) -> None:
    with pytest.raises(InvalidFrameError):
        headers_twin.Headers(raw)


# --- as any other value in Python ---


def test_headers_are_equal_by_fields_in_order_and_case_of_names(headers_twin: ModuleType) -> None:
    text, binary, pairs = (headers_twin.Headers(form) for form in FORMS.values())
    assert text == binary == pairs == headers_twin.Headers(pairs)
    assert text == headers_twin.Headers(TEXT.replace("X-Tag", "x-taG"))
    assert text != headers_twin.Headers(TEXT.replace("one", "One"))
    assert text != headers_twin.Headers(PAIRS[::-1])
    assert text != PAIRS
    with pytest.raises(TypeError):
        hash(text)


def test_a_copy_is_another_one(headers: Any) -> None:
    for made in (copy.copy(headers), copy.deepcopy(headers), pickle.loads(pickle.dumps(headers))):
        assert (made, type(made)) == (headers, type(headers))
        made.add("more", "1")
        assert made != headers
    assert "more" not in headers


def test_repr_says_all(headers_twin: ModuleType, headers: Any) -> None:
    assert repr(headers) == f"Headers({PAIRS!r})"
    assert eval(repr(headers), {"Headers": headers_twin.Headers}) == headers


def test_fields_are_added_behind_the_others(headers: Any) -> None:
    headers.add("X-Tag", b"\xff")
    headers.add(b"new", "")
    assert headers.items() == [*PAIRS, ("X-Tag", "\udcff"), ("new", "")]
    assert headers.getlist("x-tag") == ["one", "two", "\udcff"]


def test_they_are_made_of_pairs_or_a_mapping(headers_twin: ModuleType) -> None:
    made = headers_twin.Headers({"a": "1", b"b": b"2"})
    assert made == headers_twin.Headers(iter([("a", b"1"), ("b", "2")]))


@pytest.mark.parametrize("use", ["name", "value", "add", "get", "in", "number"])
def test_what_is_no_text_is_a_type_error(headers_twin: ModuleType, use: str) -> None:
    headers = headers_twin.Headers([("a", "1")])
    with pytest.raises(TypeError):
        {
            "name": lambda: headers_twin.Headers([(1, "a")]),
            "value": lambda: headers_twin.Headers([("a", 1)]),
            "add": lambda: headers.add("a", None),
            "get": lambda: headers.get(1),
            "in": lambda: None in headers,
            "number": lambda: headers_twin.Headers(1),
        }[use]()
    assert headers.items() == [("a", "1")]


# --- as a value that is sent ---


def sent(twin: ModuleType, value: Any) -> Any:
    decoded, _ = twin.decode_value(twin.encode_value(value))
    return decoded


def test_they_are_sent_as_hdrs_bin(twin: ModuleType, headers: Any) -> None:
    assert sent(twin, headers) == BINARY
    assert sent(twin, headers.names()) == b"\x04host\x05X-Tag\x05x-tag\x05empty\x00"


def test_no_headers_are_sent_as_the_end(twin: ModuleType, headers_twin: ModuleType) -> None:
    assert sent(twin, headers_twin.Headers()) == b"\0\0"
    assert sent(twin, headers_twin.Headers().names()) == b"\0"


def test_they_go_wherever_values_go(twin: ModuleType, headers: Any) -> None:
    for actions in ({"txn.add": headers}, Ack().set("txn", "add", headers).actions):
        ((action,), value) = twin.decode_actions(twin.encode_actions(actions)), BINARY
        assert (action.variable, action.value) == ("txn.add", value)
    (message,) = twin.decode_messages(twin.encode_messages([Message("m", headers=headers)]))
    assert message["headers"] == BINARY


def test_more_than_a_few_fields_are_sent(twin: ModuleType, headers_twin: ModuleType) -> None:
    headers = headers_twin.Headers([(f"x-{number}", "v" * number) for number in range(3000)])
    assert headers_twin.Headers(sent(twin, headers)) == headers


UNSAFE = [
    ("", "v"), ("a b", "v"), ("a:", "v"), ("a\r\nb", "v"), ("é", "v"), ("a\0", "v"),
    ("a", "v\r\nx: y"), ("a", "v\n"), ("a", "\r"), ("a", "v\0"), ("a", b"\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), UNSAFE)
def test_what_would_break_the_message_is_not_sent(
    twin: ModuleType, headers_twin: ModuleType, name: str, value: Any
) -> None:
    headers = headers_twin.Headers([("good", "1"), (name, value)])
    out = bytearray(b"before")
    with pytest.raises(ValueError, match=r"^txn\.add: header .*(is no token|in its value)"):
        twin.encode_actions({"txn.add": headers}, out)
    assert out == b"before"
    with pytest.raises(ValueError, match=r"^header"):
        twin.encode_value(headers)


def test_what_came_is_no_safer(twin: ModuleType, headers_twin: ModuleType) -> None:
    for fields in ("a b: v\r\n", "a: v\rx\r\n", b"\1a\1\n\0\0"):
        with pytest.raises(ValueError, match="header"):
            twin.encode_value(headers_twin.Headers(fields))


@pytest.mark.parametrize("name", [name for name, value in UNSAFE if value == "v"])
def test_names_alone_have_to_be_tokens(headers_twin: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="is no token"):
        headers_twin.Headers([(name, "v")]).names()


def test_any_class_can_say_what_is_sent(twin: ModuleType) -> None:
    class Packed:
        def __spop_binary__(self) -> bytes:
            return b"packed"

    assert sent(twin, Packed()) == b"packed"
    with pytest.raises(TypeError, match="type has no SPOP type"):
        twin.encode_value(Packed)


# --- properties ---


@given(raw_fields)
def test_every_list_comes_back_from_both_forms(fields: list[tuple[bytes, bytes]]) -> None:
    text = b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n"
    for make in twins():
        made = make(fields)
        binary = codec.decode_value(codec.encode_value(made))[0]
        for headers in (made, make(binary), make(text.decode("utf-8", "surrogateescape"))):
            assert headers.raw == fields
            assert headers == made
            assert len(headers) == len(fields)
            for name, value in headers.items():
                assert headers[name.swapcase()] in headers.getlist(name)
                assert value in headers.getlist(name.swapcase())
            assert codec.encode_value(headers) == codec.encode_value(made)


def findings(make: Any, fields: Any, name: Any, added: Any) -> list[Any]:
    """What each use gives, or the error that it raises."""
    found: list[Any] = []
    try:
        headers = make(fields)
    except (InvalidFrameError, ValueError, TypeError) as error:
        return [type(error), str(error)]
    for _ in range(2):
        for use in (
            headers.items, lambda: headers.raw, headers.names, headers.__spop_binary__,
            lambda: headers.get(name), lambda: headers.getlist(name), lambda: name in headers,
            lambda: list(headers), lambda: len(headers), lambda: headers[name],
            lambda: repr(headers), lambda: headers.add(*added),
        ):  # fmt: skip
            try:
                found.append(use())
            except (ValueError, KeyError) as error:
                found.append((type(error), str(error)))
    return found


any_text = st.one_of(st.text(max_size=8), st.binary(max_size=8))
parts = st.sampled_from(
    [b"a", b"A", b":", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"\1", b"\2", b"\xf0", b"\xff"]
)


@given(
    st.one_of(
        st.lists(parts, max_size=30).map(b"".join),
        st.binary(max_size=40),
        st.lists(parts, max_size=30).map(lambda p: b"".join(p).decode("utf-8", "surrogateescape")),
        st.lists(st.tuples(any_text, any_text), max_size=4),
    ),
    st.one_of(any_text, st.sampled_from(["a", "A"])),
    st.tuples(any_text, any_text),
)
@pytest.mark.skipif(codec.IMPLEMENTATION == "python", reason="there is one implementation only")
def test_the_twins_find_the_same_whatever_comes(fields: Any, name: Any, added: Any) -> None:
    python, compiled = (findings(make, fields, name, added) for make in twins())
    assert python == compiled
