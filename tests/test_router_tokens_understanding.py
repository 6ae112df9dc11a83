"""What versions of vLLM make of one prompt, put together: those that make the same are one."""

from __future__ import annotations

import numpy as np
import orjson

from indexer.mappings import Ending
from router.core.token_states import Origin, TokenizerState
from router.prompts.prompt import Prompt, parse
from router.tokens.given import Encoded
from router.tokens.understanding import Gathered, in_versions, room_tokens

ORIGIN = Origin(TokenizerState(source="render"), "plain", "m")


def prompt() -> Prompt:
    """Any."""
    return parse("/v1/completions", orjson.dumps({"model": "m", "prompt": "Hallo"}))


def gathered(*keys: int, tokens: int = 40, origin: Origin = ORIGIN, reason: str | None = None) -> Gathered:
    """What is known of a prompt with these block keys; without any, only why it is not."""
    made = Gathered(origin=origin, reason=reason)
    if keys:
        ending = Ending(np.array(keys, np.uint64), tokens, live=False)
        made.add(Encoded(ending, np.zeros(tokens, np.uint32), "miss", 0.0, 0.0), 16)
    return made


def test_there_must_be_room_for_the_longest_of_several_prompts() -> None:
    """For its answer, too; a text's tokens are guessed."""

    def room(first: int, **body: object) -> int | None:
        return room_tokens(parse("/v1/completions", orjson.dumps({"model": "m", "max_tokens": 7, **body})), first)

    assert room(9, prompt=[1] * 9) == 7
    assert room(9, prompt=[[1] * 9, [1] * 30, [1] * 12]) == 7 + 21
    assert room(30, prompt=[[1] * 30, [1] * 9]) == 7
    assert room(2, prompt=["ab cd", "x" * 400]) == 7 + 98
    assert room(9, prompt=["a", "b"], truncate_prompt_tokens=-1) is None


def test_the_same_tokens_are_one_demand() -> None:
    """Asked of two versions, which say the same by the same source: nothing is told apart any more."""
    demand = in_versions({"0.31.0": gathered(1, 2), "0.32.0": gathered(1, 2)}, prompt()).demand(prompt())
    assert (demand.tokens, demand.by_version) == (40, None)


def test_other_tokens_and_other_sources_are_told_apart() -> None:
    """Other keys, another count behind equal blocks, or a source that events may prove wrong by itself."""
    first, other = gathered(1, 2), Origin(TokenizerState(source="tokenize"), "plain", "m")
    shared = gathered(1, 3)
    several = {"a": first, "b": shared, "c": shared, "d": gathered(1, 2, tokens=41), "e": gathered(1, 2, origin=other)}
    demand = in_versions(several, prompt()).demand(prompt())
    assert demand.by_version is not None
    assert demand.by_version.keys() == {"b", "c", "d", "e"}
    assert demand.by_version["b"] is demand.by_version["c"]
    assert [demand.by_version[version].tokens for version in "bde"] == [40, 41, 40]
    assert demand.by_version["e"].origin is other


def test_what_one_version_does_not_tell() -> None:
    """The prompt is known by the others' tokens, for their pods; to its own it is about as long."""
    silent = gathered(reason="not tokenized: the pods' /tokenize fails")
    silent.broken = 1
    both = in_versions({"0.31.0": silent, "0.32.0": gathered(1, 2)}, prompt())
    demand = both.demand(prompt())
    assert (both.broken, demand.reason, demand.tokens) == (1, None, 40)
    assert demand.by_version is not None
    assert demand.by_version.keys() == {"0.31.0"}
    unknown = demand.by_version["0.31.0"]
    assert (unknown.reason, unknown.tokens, dict(unknown.keys)) == (silent.reason, 40, {})
    nobody = in_versions({"0.31.0": silent, "0.32.0": silent}, prompt()).demand(prompt())
    assert (nobody.reason, nobody.by_version) == (silent.reason, None)
