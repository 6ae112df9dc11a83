"""Prompts of files: every form, and one plain line for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.warmup.prompts import CHAT, TEXT, prompts_of
from router.warmup.sources import read_all


def test_texts() -> None:
    """A text is one prompt, or several with a delimiter; empty ones are none."""
    (whole,) = prompts_of("a.txt", b"one\n---\ntwo\n", None)
    assert (whole.path, whole.fields) == (TEXT, {"prompt": "one\n---\ntwo"})
    parts = prompts_of("a.txt", b"one\n---\n\n---\ntwo\n", "---")
    assert [(part.name, part.fields["prompt"]) for part in parts] == [("a.txt:1", "one"), ("a.txt:3", "two")]


def test_chunks() -> None:
    """Each with the system prompt before it, under its name; without one, alone."""
    content = {"system_prompt": "Be kind.", "chunks": [{"name": "x", "content": "A"}, {"content": "B"}]}
    first, second = prompts_of("c.json", json.dumps(content).encode(), None)
    system = {"role": "system", "content": "Be kind."}
    assert (first.name, first.path) == ("c.json:x", CHAT)
    assert first.fields == {"messages": [system, {"role": "user", "content": "A"}]}
    assert (second.name, second.fields["messages"][1]["content"]) == ("c.json:2", "B")
    (alone,) = prompts_of("c.json", b'{"chunks": [{"content": "A"}]}', None)
    assert alone.fields["messages"] == [{"role": "user", "content": "A"}]


def test_requests() -> None:
    """One on each line, as they are; the model is named where it is not."""
    lines = b'{"messages": [{"role": "user", "content": "A"}], "tools": []}\n\n{"prompt": [1, 2], "model": "m"}\n'
    chat, text = prompts_of("r.jsonl", lines, None)
    assert (chat.path, text.path, text.name) == (CHAT, TEXT, "r.jsonl:3")
    assert json.loads(chat.body("n")) == {
        "model": "n", "messages": [{"role": "user", "content": "A"}], "tools": [],
    }  # fmt: skip
    assert json.loads(text.body("n"))["model"] == "m"
    assert "model" not in json.loads(chat.body())


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"\xff", "a.txt: is not text in UTF-8"),
        ("c.json", b"{", "c.json: is not JSON: "),
        ("c.json", b"[]", "c.json: is no JSON object"),
        ("c.json", b"{}", "c.json: should be "),
        ("c.json", b'{"chunks": [{"content": "A"}, {"name": "x"}]}', "c.json: chunks: number 2 has no content"),
        ("r.jsonl", b'{"prompt": "x"}\n{}', "r.jsonl:2: has neither messages nor prompt"),
    ],
)
def test_what_is_no_prompt(name: str, content: bytes, line: str) -> None:
    """One plain line that names the place."""
    with pytest.raises(ConfigError) as caught:
        prompts_of(name, content, None)
    assert caught.value.message.startswith(line)


def test_sources(tmp_path: Path) -> None:
    """Files and variables, in their order; what is not there, or too large, is said."""
    file = tmp_path / "a.txt"
    file.write_text("from a file")
    found = read_all([str(file), "env:WORDS"], None, 100, {"WORDS": "from a variable"})
    assert [prompt.fields["prompt"] for prompt in found] == ["from a file", "from a variable"]
    for name, why in (("env:NONE", "no such variable"), (str(tmp_path / "b"), "can't be read"), (str(file), "larger")):
        with pytest.raises(ConfigError, match=why):
            read_all([name], None, 5, {})
