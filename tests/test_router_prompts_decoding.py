"""Only what is used of a body is decoded: so all that is read of it must be named, and all that changes its tokens."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.prompts.decoding import USED, fields_of
from router.prompts.prompt import parse

ROOT = Path(__file__).parents[1]
READERS = sorted(path for room in ("prompts", "tokens") for path in (ROOT / "router" / room).glob("*.py"))
LENIENT = {"flag", "_integer"}  # functions that read a field by its name

# What vLLM 0.32.0 takes, and what changes neither the prompt, nor who holds it, nor what serving it costs.
SAMPLING = """
    allowed_token_ids bad_words frequency_penalty ignore_eos include_stop_str_in_output length_penalty logit_bias
    logprob_token_ids min_p min_tokens presence_penalty repetition_detection repetition_penalty seed
    skip_special_tokens spaces_between_special_tokens stop stop_sequences stop_token_ids temperature top_k top_p
    watermarking
""".split()
ANSWER = """
    background enable_response_messages include max_output_tokens max_tool_calls metadata mm_payload output_mode
    return_mm_kwargs return_prompt_text return_token_ids return_token_offsets return_token_strs
    return_tokens_as_token_ids routed_experts_prompt_start service_tier store stream_interval text token_offsets
""".split()
NAMES = "ec_transfer_params kv_transfer_params request_id session_id".split()
OF_UNREAD_PROMPTS = """
    previous_input_messages previous_response_id truncation reasoning_ended reasoning_parser_kwargs dimensions
    embed_dtype encoding_format endianness padding use_activation
""".split()
REQUESTS = {
    "chat": """
        add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
        chat_template_kwargs continue_final_message documents ec_transfer_params echo frequency_penalty ignore_eos
        include_reasoning include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids
        logprobs max_completion_tokens max_tokens media_io_kwargs messages min_p min_tokens mm_payload
        mm_processor_kwargs model n parallel_tool_calls presence_penalty priority prompt_logprobs reasoning_effort
        repetition_detection repetition_penalty request_id response_format return_mm_kwargs return_prompt_text
        return_token_ids return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed session_id
        skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
        structured_outputs temperature thinking_token_budget tool_choice tools top_k top_logprobs top_p
        truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking
    """,
    "completion": """
        add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo frequency_penalty ignore_eos
        include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_tokens
        min_p min_tokens mm_payload model n presence_penalty priority prompt prompt_embeds prompt_logprobs
        repetition_detection repetition_penalty request_id response_format return_mm_kwargs return_token_ids
        return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed session_id
        skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
        structured_outputs suffix temperature thinking_token_budget top_k top_p truncate_prompt_tokens
        truncation_side use_beam_search user vllm_xargs watermarking
    """,
    "generate": """
        cache_salt content_parts ec_transfer_params features kv_transfer_params model output_mode priority
        reasoning_ended reasoning_parser_kwargs request_id return_token_ids sampling_params stream stream_options
        token_ids token_offsets
    """,
    "tokenize": """
        add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message
        media_io_kwargs messages mm_processor_kwargs model prompt return_token_strs tools
    """,
    "messages": """
        cache_salt chat_template_kwargs ec_transfer_params kv_transfer_params max_tokens messages metadata mm_payload
        model output_config return_mm_kwargs stop_sequences stream system temperature thinking tool_choice tools top_k
        top_p vllm_xargs watermarking
    """,
    "responses": """
        background cache_salt chat_template_kwargs ec_transfer_params enable_response_messages frequency_penalty
        ignore_eos include include_reasoning include_stop_str_in_output input instructions kv_transfer_params
        logit_bias max_output_tokens max_tool_calls media_io_kwargs metadata min_p mm_payload mm_processor_kwargs model
        parallel_tool_calls presence_penalty previous_input_messages previous_response_id priority prompt
        prompt_cache_key reasoning repetition_penalty request_id return_mm_kwargs seed service_tier session_id
        skip_special_tokens stop stop_token_ids store stream structured_outputs temperature text tool_choice tools
        top_k top_logprobs top_p truncation user vllm_xargs watermarking
    """,
    "embeddings": """
        add_generation_prompt add_special_tokens cache_salt chat_template chat_template_kwargs continue_final_message
        dimensions embed_dtype encoding_format endianness input media_io_kwargs messages mm_processor_kwargs model
        padding priority request_id truncate_prompt_tokens truncation_side use_activation user
    """,
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_field_that_vllm_takes_is_stepped_over_unawares(kind: str) -> None:
    """Each one is used, or listed here as of no matter for routing."""
    idle = {*SAMPLING, *ANSWER, *NAMES, *OF_UNREAD_PROMPTS}
    assert not idle & USED
    assert set(REQUESTS[kind].split()) - USED - idle == set()


@pytest.mark.parametrize("path", READERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_read_is_decoded(path: Path) -> None:
    """A field that is read and not decoded would never be there."""
    assert set(names_read(ast.parse(path.read_text()))) <= USED


def test_the_readers_are_seen() -> None:
    """The look at the sources finds what it is for, by whatever way a field is read."""
    read = {name for path in READERS for name in names_read(ast.parse(path.read_text()))}
    assert read >= {"messages", "n", "stream", "documents", "system", "input", "task", "token_ids", "tool_choice"}
    source = "WAYS = {'k': 1}\ndef f(fields):\n for a, b in WAYS.items():\n  fields.get(a)\n return fields['l']"
    assert sorted(names_read(ast.parse(source))) == ["k", "l"]


def test_what_is_used_is_decoded_as_it_is_and_nothing_else() -> None:
    """Whatever its value; of two of one name the last one counts."""
    for name in USED:
        assert fields_of(b'{"x":[{}],"%b":[1],"y":{"%b":2},"%b":{"z":[null]}}' % ((name.encode(),) * 3)) == {
            name: {"z": [None]}
        }


def test_tokens_with_parts_are_no_prompt_of_tokens() -> None:
    """vLLM makes features of a generate request's parts: its blocks are not those of its ids alone."""
    body = b'{"model":"m","token_ids":[1,2],"content_parts":[{"type":"image_url","image_url":{"url":"data:"}}]}'
    prompt = parse("/inference/v1/generate", body)
    assert (prompt.kind, prompt.reason) == ("none", "the prompt has multimodal features")
    assert (
        parse("/inference/v1/generate", body.replace(b'{"type":"image_url","image_url":{"url":"data:"}}', b"")).kind
        == "tokens"
    )


def names_read(tree: ast.Module) -> Iterator[str]:
    """The names of all fields that a module reads; fails where one can't be told."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
        parameters = {each.arg for each in function.args.args}
        loops = {
            target.id: loop.iter
            for loop in ast.walk(function)
            if isinstance(loop, ast.For | ast.comprehension)
            for target in [loop.target.elts[0] if isinstance(loop.target, ast.Tuple) else loop.target]
            if isinstance(target, ast.Name)
        }
        for key in keys_read(function):
            if isinstance(key, ast.Name) and key.id in loops:
                yield from strings(loops[key.id], constants)
            elif not (isinstance(key, ast.Name) and key.id in parameters):  # else whoever calls gives it
                assert isinstance(key, ast.Constant), f"{ast.unparse(key)} in {function.name}: which fields are that?"
                yield key.value


def keys_read(function: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and is_fields(node.value) and isinstance(node.ctx, ast.Load):
            yield node.slice
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            if is_fields(node.comparators[0]):
                yield node.left
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in ("get", "pop") and is_fields(called.value):
                yield node.args[0]
            elif isinstance(called, ast.Name) and called.id in LENIENT and is_fields(node.args[0]):
                yield node.args[1]


def is_fields(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "fields") or (
        isinstance(node, ast.Attribute) and node.attr == "fields"
    )


def strings(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """The names in a tuple, in the first places of a tuple's tuples, or that are a mapping's keys."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "items":
        node = node.func.value
    if isinstance(node, ast.Name):
        node = constants[node.id]
    assert isinstance(node, ast.Dict | ast.Tuple), ast.unparse(node)
    for each in node.keys if isinstance(node, ast.Dict) else node.elts:
        name = each.elts[0] if isinstance(each, ast.Tuple) else each
        assert isinstance(name, ast.Constant)
        yield name.value
