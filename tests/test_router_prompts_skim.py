"""`router.prompts.skim`: of a large body what is used, as a decoder would have it, and never more than it may weigh."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import BadRequest
from router.prompts.decoding import fields_of
from router.prompts.prompt import is_large, parse, parse_large
from router.prompts.skim import skim

CHAT = "/v1/chat/completions"
MUCH = 1 << 40
MIB = 1 << 20

texts = st.text(st.sampled_from('ab\\"{}[],: \nü€'), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 40) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
names = st.sampled_from(["model", "messages", "tools", "n", "metadata", 'quo"te', "\\", "é"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A JSON object, written in one of the ways that there are."""
    comma, colon, ascii_only = (
        draw(st.sampled_from([",", ", ", " ,\n"])),
        draw(st.sampled_from([":", " : "])),
        draw(st.booleans()),
    )
    fields = draw(st.lists(st.tuples(names, values), max_size=6))
    members = [json.dumps(name) + colon + json.dumps(value, ensure_ascii=ascii_only) for name, value in fields]
    return f"{draw(st.sampled_from(['', ' ', chr(10)]))}{{{comma.join(members)}}} ".encode()


@settings(max_examples=400, deadline=None)
@given(bodies(), st.sampled_from([1, 2, 3, 7, 64, 1 << 18]))
def test_the_used_fields_are_what_a_decoder_has(body: bytes, piece_bytes: int) -> None:
    """Wherever a piece ends: in a string, behind a backslash, before the colon."""
    assert fields_of(skim(body, MUCH, piece_bytes).body) == fields_of(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'"{}"',
        b"{",
        b"}",
        b'{"a": [}',
        b'{"a": "}',
        b'{"a": 1}}',
        b'{"a": 1} x',
        b'{"a": {"b": 1}',
        b"\xff" * 9,
    ],
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """As far as braces tell: what is in them is the pod's to judge."""
    with pytest.raises(BadRequest):
        skim(body, MUCH)


def test_a_great_many_fields_are_refused() -> None:
    """No API has so many, and to name each would take seconds."""
    with pytest.raises(BadRequest):
        skim(b"{" + b'"a":1,' * 20_000 + b'"b":1}', MUCH)


def of_many(unit: bytes, count: int, field: bytes = b"metadata") -> bytes:
    """A chat with `count` of something in one of its fields."""
    return b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}],"%b":[%b0]}' % (field, unit * count)


THINGS = [
    b'{"a":[]},',
    b"{},",
    b"[],",
    b"[[]],",
    b"1,",
    b"1234567,",
    b'"",',
    b'"ab",',
    b'{"a":1,"b":2,"c":3},',
    b"1.5,",
]
THINGS += [b'{"role":"user","content":"x"},', '"héé",'.encode(), b'"\\u00e9\\u20ac",', b'{"a":{"a":{"a":{}}}},']


@pytest.mark.parametrize("unit", THINGS)
def test_a_weight_is_no_less_than_what_is_decoded(unit: bytes) -> None:
    """Whatever fits in the bound takes no more memory than it."""
    count = 2 * MIB // len(unit)
    body = of_many(unit, count, b"tools")
    low, high = 0, 1 << 30
    while high - low > 1 << 10:  # the least bound under which it is not left out
        middle = (low + high) // 2
        low, high = (low, middle) if not skim(body, middle).left_out else (middle, high)
    part = skim(body, high).body
    tracemalloc.start()
    try:
        fields = fields_of(part)
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(fields["tools"]) == count + 1
    assert taken / 8 < high and taken <= peak <= 1.15 * high + len(part)


@pytest.mark.parametrize("field", [b"metadata", b"messages", b"tools", b"chat_template_kwargs", b"vllm_xargs"])
def test_too_much_is_not_decoded(field: bytes) -> None:
    """A field that is too heavy is left out; the others are known, and the request is routed without its prompt."""
    body = of_many(b'{"a":[]},', MIB // 4, field)
    tracemalloc.start()
    try:
        prompt = parse_large(CHAT, body, MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert prompt.model == "m" and prompt.stream and prompt.large
    assert peak < 24 * MIB  # pieces of the body on their way; decoded it would be 100
    if field == b"metadata":
        assert prompt.kind == "chat"
    else:
        assert prompt.kind == "none" and field.decode() in str(prompt.reason)


def test_large_bodies_mean_what_small_ones_do() -> None:
    """The same prompt either way, also where vLLM's reader takes more than others."""
    for more in ({}, {"n": 2}, {"tools": []}, {"metadata": [{"a": []}] * 10}):
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 5000}], **more})
        small, large = parse(CHAT, body), parse_large(CHAT, body, MUCH)
        assert large.large and not small.large
        assert (large.kind, large.model, large.fields, large.is_alone) == (
            small.kind,
            small.model,
            small.fields,
            small.is_alone,
        )
    odd = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN, "top_p": 1e400}'
    assert parse(CHAT, odd).kind == parse_large(CHAT, odd, MUCH).kind == "chat"
    with_mark = b"\xef\xbb\xbf" + odd
    assert parse(CHAT, with_mark).model == parse_large(CHAT, with_mark, MUCH).model == "m"


def test_what_is_no_json_is_passed_on_where_it_may_be() -> None:
    """An upload is not JSON, and has no model that could be read; a chat is refused."""
    upload = b"--boundary\r\n" + b"\0" * 5000
    assert parse_large("/v1/audio/transcriptions", upload, MUCH).kind == "none"
    assert parse_large("/v1/audio/transcriptions", b"{" + upload, MUCH).model is None
    with pytest.raises(BadRequest):
        parse_large(CHAT, upload.replace(b"\0", b"a"), MUCH)
    in_utf16 = '{"model": "m", "prompt": "a"}'.encode("utf-16")
    assert parse_large("/v1/completions", in_utf16, MUCH).reason is not None


@pytest.mark.parametrize(
    ("body", "large"),
    [
        (b"x" * 1000, False),
        (b"x" * 1025, True),
        (b"," * 200, False),
        (b"," * 300, True),
        (b"x," * 17 + b"x" * 900, False),
    ],
)
def test_large_is_what_takes_long(body: bytes, large: bool) -> None:
    """By size, and by how much there is in it."""
    assert is_large(body, 1024) == large


def test_names_of_fields_are_read_as_json() -> None:
    """An escaped name is the same name; of two the last counts."""
    body: Any = b'{"mod\\u0065l": "a", "model": "b", "x": "\\ud800", "m\xff": 1}'
    assert fields_of(skim(body, MUCH).body) == {"model": "b"}
