"""`router.prompts.prompt`: bodies become prompts, and only what every pod refuses is refused."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from router.errors import BadRequest
from router.prompts.prompt import Prompt, parse, parse_query
from tests.fakes.recordings import VECTORS, VERSIONS

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields: Any) -> Prompt:
    """A chat of one user message, with more fields."""
    return parse(CHAT, orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}))


def completion(**fields: Any) -> Prompt:
    """A completion's prompt."""
    return parse(TEXT, orjson.dumps({"model": "m", **fields}))


def test_a_chat_is_read_in_full() -> None:
    """All that routing needs is read, and the body is kept."""
    prompt = chat(stream=True, stream_options={"include_usage": True}, n=2, max_tokens=7, cache_salt="s")
    assert (prompt.kind, prompt.model, prompt.reason) == ("chat", "m", None)
    assert (prompt.stream, prompt.include_usage, prompt.n, prompt.max_tokens) == (True, True, 2, 7)
    assert (prompt.cache_salt, prompt.add_special_tokens) == ("s", False)
    assert prompt.fields["messages"] == [{"role": "user", "content": "hi"}]


def test_max_completion_tokens_comes_first() -> None:
    """The newer name of the limit beats the older one."""
    assert chat(max_tokens=7, max_completion_tokens=3).max_tokens == 3


def test_numbers_and_truth_values_are_read_as_leniently_as_by_the_pod() -> None:
    """What vLLM's models would take as an integer or a truth value is taken; null is the default."""
    prompt = chat(n="3", max_tokens=4.0, stream="yes", add_special_tokens=1)
    assert (prompt.n, prompt.max_tokens, prompt.stream, prompt.add_special_tokens) == (3, 4, True, True)
    assert (chat(n=None).n, chat(stream=None).stream, chat(stream=0).stream) == (1, False, False)


def test_every_form_of_a_completions_prompt() -> None:
    """A string, strings, ids, lists of ids: text gets special tokens by default."""
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt="a").add_special_tokens
    assert not completion(prompt="a", add_special_tokens=False).add_special_tokens
    ids = completion(prompt=[1, 2, 3])
    assert ids.kind == "tokens"
    assert [list(map(int, one)) for one in ids.prompts] == [[1, 2, 3]]
    assert [len(one) for one in completion(prompt=[[1], [2, 3]]).prompts] == [1, 2]


def test_token_ids_are_truncated_to_the_last_ones() -> None:
    """Of ids the last N are kept, or the first N when the side is right; -1 keeps all."""
    kept = completion(prompt=[1, 2, 3], truncate_prompt_tokens=2).prompts[0]
    assert list(map(int, kept)) == [2, 3]
    kept = completion(prompt=[1, 2, 3], truncate_prompt_tokens=2, truncation_side="right").prompts[0]
    assert list(map(int, kept)) == [1, 2]
    assert len(completion(prompt=[1, 2, 3], truncate_prompt_tokens=-1).prompts[0]) == 3
    assert completion(prompt="a", truncate_prompt_tokens=5).truncate_prompt_tokens == 5
    assert completion(prompt="a", truncate_prompt_tokens=5, truncation_side="right").kind == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "hi"},
        {"messages": []},
        {"messages": ["hi"]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": "user", "content": {"text": "hi"}}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": "f"}]},
        {"model": 3},
        {"cache_salt": ""},
        {"cache_salt": 5},
        {"tools": {}},
        {"chat_template": ["x"]},
        {"chat_template_kwargs": "x"},
        {"documents": "x"},
        {"n": "many"},
        {"n": 1.5},
        {"max_tokens": []},
        {"stream": "perhaps"},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": 3, "truncation_side": "middle"},
        {"add_generation_prompt": True, "continue_final_message": True},
    ],
)
def test_a_chat_that_every_pod_refuses(fields: dict[str, Any]) -> None:
    """Wrong shapes and types are the client's error."""
    with pytest.raises(BadRequest):
        chat(**fields)


@pytest.mark.parametrize(
    "given", ["", [], None, 7, {}, [[]], [1, "a"], ["a", 1], [-1], [1 << 32], [1.5], [[1], "a"], [[1], 2]]
)
def test_a_completion_that_every_pod_refuses(given: object) -> None:
    """An empty prompt, mixed lists, and what is no token id."""
    with pytest.raises(BadRequest):
        completion(prompt=given)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"model": ',
        b"[]",
        b'"text"',
        b"\xff\xfe\xfd",
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_of_text(body: bytes) -> None:
    """Broken JSON, other JSON, lone surrogates and bottomless nesting are all 400, quickly and in one line."""
    with pytest.raises(BadRequest) as caught:
        parse(TEXT, body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


def test_json_that_only_python_reads_is_taken() -> None:
    """vLLM uses Python's own reader: NaN and UTF-16 are no errors."""
    assert parse(TEXT, b'{"prompt": "a", "temperature": NaN}').prompts == ("a",)
    assert parse(TEXT, '{"prompt": "é"}'.encode("utf-16")).prompts == ("é",)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "hologram"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "text"),
        ({"role": "user", "content": [7]}, "int"),
        ({"author": {"role": "user"}, "content": []}, "Harmony"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, "tool call"),
    ],
)
def test_what_only_the_pod_understands_is_no_error(message: dict[str, Any], word: str) -> None:
    """Images, audio, unknown parts: routed by load, and the reason says why."""
    prompt = chat(messages=[message])
    assert prompt.kind == "none"
    assert prompt.reason is not None
    assert word in prompt.reason


def test_a_reason_quotes_a_client_only_shortly() -> None:
    """A name of any length does not flood the logs."""
    prompt = chat(messages=[{"role": "user", "content": [{"type": "x" * 10_000}]}])
    assert prompt.reason is not None
    assert len(prompt.reason) < 150


def test_odd_tools_and_embedded_prompts_are_no_error() -> None:
    """What may be a newer API than ours is left to the pod."""
    assert chat(tools=[{"type": "web_search"}]).kind == "none"
    assert completion(prompt_embeds="AAAA").reason == "the prompt is given as embeddings"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/x"])
def test_other_requests_give_their_model(path: str) -> None:
    """Requests whose prompts are not understood are routed by model and load."""
    prompt = parse(path, b'{"model": "m", "input": "x"}')
    assert (prompt.kind, prompt.model) == ("none", "m")
    assert prompt.reason


def messages(**fields: Any) -> Prompt:
    """A body of the Messages API."""
    return parse("/v1/messages", orjson.dumps({"model": "m", "max_tokens": 5, **fields}))


def test_messages_of_texts_are_a_chat() -> None:
    """The Messages API in texts: the system's text comes first, blocks are joined as vLLM joins them."""
    text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    empty = {"type": "text", "text": ""}
    asked = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [empty, text]},
        {"role": "user", "content": [text, {**text, "text": "b"}]},
    ]
    prompt = messages(messages=asked, system=[text, text], stream=True, cache_salt="not of this API", priority=3)
    assert (prompt.kind, prompt.stream, prompt.max_tokens, prompt.cache_salt) == ("chat", True, 5, None)
    assert not prompt.tells_cached and prompt.priority == 3
    assert prompt.fields["messages"] == [
        {"role": "system", "content": "aa"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert messages(messages=asked[:1], system="").fields["messages"] == asked[:1]
    assert chat().tells_cached


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"name": "f"}]}, "tools of the Messages API"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "neither user nor assistant"),
        ({"messages": [{"role": "user", "content": []}]}, "empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ({"messages": [{"role": "user", "content": 3}]}, "neither a string"),
        ({"messages": ["x"]}, "neither user nor assistant"),
        ({"system": [{"type": "text", "text": "x-anthropic-billing-header: y"}]}, "billing header"),
        ({"system": [{"type": "text", "text": 3}]}, "not text"),
    ],
)
def test_other_messages_are_not_guessed(fields: dict[str, Any], reason: str) -> None:
    """What versions of vLLM write differently, and what they may refuse, is left to the pod."""
    prompt = messages(**{"messages": [{"role": "user", "content": "hi"}], **fields})
    assert (prompt.kind, prompt.model) == ("none", "m")
    assert prompt.reason is not None and reason in prompt.reason


def test_an_unknown_path_may_have_any_body() -> None:
    """Uploads are no JSON; the APIs that are JSON refuse anything else."""
    assert parse("/v1/audio/transcriptions", b"--boundary\r\n\xff").model is None
    with pytest.raises(BadRequest):
        parse("/v1/responses", b"no json")


def test_score_takes_exactly_one_prompt() -> None:
    """POST /score: a prompt, messages or token ids; not two of them, not a list of prompts."""
    messages = [{"role": "user", "content": "hi"}]
    assert parse("/score", orjson.dumps({"prompt": "a", "pods": ["p"]})).fields["pods"] == ["p"]
    assert parse("/score", orjson.dumps({"messages": messages})).kind == "chat"
    assert parse("/score", orjson.dumps({"token_ids": [1, 2]})).kind == "tokens"
    for body in ({}, {"prompt": "a", "messages": messages}, {"prompt": ["a", "b"]}, {"token_ids": []}):
        with pytest.raises(BadRequest):
            parse("/score", orjson.dumps(body))


def test_vllms_own_score_is_left_alone() -> None:
    """A body with texts to compare is recognised, not refused."""
    prompt = parse("/score", b'{"model": "m", "text_1": "a", "text_2": "b"}')
    assert (prompt.kind, prompt.model) == ("none", "m")


def test_score_by_query() -> None:
    """GET /score is the same for one text."""
    prompt = parse_query({"model": "m", "prompt": "a", "pods": "p,q"})
    assert (prompt.kind, prompt.model, prompt.prompts) == ("text", "m", ("a",))
    assert prompt.pods == {"p", "q"}
    with pytest.raises(BadRequest):
        parse_query({"model": "m"})


def test_vllms_own_requests() -> None:
    """/tokenize takes a text or a chat, /inference/v1/generate ids."""
    assert parse("/tokenize", b'{"prompt": "a"}').add_special_tokens
    assert parse("/tokenize", b'{"messages": [{"role": "user", "content": "a"}]}').kind == "chat"
    prompt = parse("/inference/v1/generate", b'{"token_ids": [1], "sampling_params": {"max_tokens": 5}}')
    assert (prompt.kind, prompt.max_tokens) == ("tokens", 5)
    assert parse("/inference/v1/generate", b'{"token_ids": [1], "features": {}}').kind == "none"


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_errors(version: str) -> None:
    """Of the refusals recorded we make those that need no model ourselves, with the pod's status; no others."""
    ours = []
    for line in (VECTORS / version / "requests.jsonl").read_bytes().splitlines():
        request = orjson.loads(line)
        body = request["body"]
        try:
            parse(request["path"], body.encode() if isinstance(body, str) else json.dumps(body).encode())
        except BadRequest as error:
            assert request["status"] == error.status
            ours.append(request["note"] or json.dumps(body)[:40])
    assert len(ours) == 6, ours


def test_whose_it_is() -> None:
    """`prompt_cache_key` names a session, else `user`; what is no name is for the pod to refuse."""
    for body, name in (
        ({"prompt_cache_key": "key", "user": "me"}, "key"),
        ({"prompt_cache_key": "", "user": "me"}, "me"),
        ({"prompt_cache_key": 7, "user": ["me"]}, None),
        ({}, None),
    ):
        given = orjson.dumps({"model": "m", "prompt": "Hi", **body})
        assert parse("/v1/completions", given).session == name
