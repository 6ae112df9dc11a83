"""The tokenizer gives the ids of `tokenizers`, whole and in pieces, or says that it can't be fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer

from router.errors import ConfigError
from router.tokens.conversion import overlapping
from router.tokens.tokenizer import Tokenizer, surely_nfc
from tests.fakes.hostile import TINY_LLAMA, TINY_QWEN, gpt2_style, texts

SMALL_WINDOW_BYTES = 16  # many cuts in short texts


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2_style(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(params=["qwen", "llama", "gpt2"])
def folder(request: pytest.FixtureRequest, gpt2_folder: Path) -> Path:
    return {"qwen": TINY_QWEN, "llama": TINY_LLAMA, "gpt2": gpt2_folder}[request.param]


def reference(folder: Path) -> tuple[HFTokenizer, list[str], list[str]]:
    """The library's own tokenizer, its added tokens, and its other tokens as text."""
    path = folder / "tokenizer.json"
    tokenizer = HFTokenizer.from_file(str(path))
    added = [token["content"] for token in json.loads(path.read_text("utf-8"))["added_tokens"]]
    words = [tokenizer.decode([i]) for i in range(min(tokenizer.get_vocab_size(), 3000))]
    return tokenizer, added, words


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a tokenizer with something changed."""
    description = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(description)
    (target / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    return target


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """`text`, cut at its safe places."""
    data = text.encode()
    ends = tokenizer.cuts.ends(data)
    return [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


def differences(tokenizer: Tokenizer, folder: Path, seed: int, count: int) -> tuple[list[str], int]:
    """The hostile texts whose ids differ, whole, cut after tokenizing or before, and how many pieces there were."""
    whole, added, words = reference(folder)
    wrong, pieces_seen = [], 0
    for text in texts(seed, count, added, words):
        expected = whole.encode(text, add_special_tokens=True).ids
        plain = whole.encode(text, add_special_tokens=False).ids
        pieces = pieces_of(tokenizer, text)
        pieces_seen += len(pieces)
        alone = [tokenizer.encode(piece, False).tolist() for piece in pieces]
        data = text.encode()
        ends = tokenizer.cuts.ends(data)
        ids, stops = tokenizer.encode_cut(data, ends)
        if stops is None:
            behind = [tokenizer.count(ids, len(data) - end) for end in ends[:-1]]
            stops = [*(len(ids) - (count or 0) for count in behind), len(ids)]
        cut = [ids[start:end].tolist() for start, end in zip([0, *stops], stops, strict=False)]
        if [*tokenizer.encode(text, True)] != expected or cut != alone or [*chain.from_iterable(alone)] != plain:
            wrong.append(text)
        assert "".join(pieces) == text
    return wrong, pieces_seen


def test_hostile_texts_have_the_same_ids_whole_and_in_pieces(folder: Path) -> None:
    """No difference to `tokenizers`, with tiktoken at work and a cut wherever one is allowed."""
    tokenizer = Tokenizer(folder, SMALL_WINDOW_BYTES)
    assert tokenizer.fast and tokenizer.cuts.inside
    wrong, pieces = differences(tokenizer, folder, seed=1, count=3000)
    assert wrong == []
    assert pieces > 9000


def test_pieces_of_a_text_are_pieces_of_longer_texts(folder: Path) -> None:
    """However a text goes on, it is cut as before: all pieces but the last stay."""
    tokenizer = Tokenizer(folder, SMALL_WINDOW_BYTES)
    _, added, words = reference(folder)
    shorter = list(texts(2, 300, added, words))
    for text, more in zip(shorter, reversed(shorter), strict=True):
        for size in (len(text), len(text) // 2):
            before = pieces_of(tokenizer, text[:size])
            after = pieces_of(tokenizer, text + more)
            assert after[: len(before) - 1] == before[:-1]


def test_long_runs_have_the_same_ids() -> None:
    """Runs of one character, longer than tiktoken's regex engine can take in one word."""
    tokenizer = Tokenizer(TINY_QWEN)
    whole, _, _ = reference(TINY_QWEN)
    for character in (" ", "a", "\n", "0", "-", "\u4e2d", "e\u0301"):
        for count in (5_000, 270_000):
            text = character * count + "x"
            assert tokenizer.encode(text, False).tolist() == whole.encode(text).ids
    blanks = " " * 1_100_000
    assert tokenizer.encode(blanks, False).tolist() == whole.encode(blanks).ids


def test_newer_scripts_are_composed_by_the_library() -> None:
    """Letters that compose in a later Unicode than Python's are left to the library that pods use."""
    assert surely_nfc("caf\u00e9 \u4e2d") and not surely_nfc("cafe\u0301")
    assert not surely_nfc("\U00016d63\U00016d67")


def test_beginning_and_end_tokens_are_added_where_asked_for(gpt2_folder: Path) -> None:
    """What the post-processor adds is known as a prefix and a suffix."""
    llama, gpt2 = Tokenizer(TINY_LLAMA), Tokenizer(gpt2_folder)
    assert (llama.prefix.tolist(), llama.suffix.tolist()) == ([5984], [])
    assert len(gpt2.prefix) == len(gpt2.suffix) == 1
    assert gpt2.encode("", True).tolist() == [*gpt2.prefix, *gpt2.suffix]
    assert llama.encode("a", False).tolist() == llama.encode("a", True).tolist()[1:]


def unknown_pattern(description: dict[str, Any]) -> None:
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+|[^\s\p{L}]+"


def merges_in_another_order(description: dict[str, Any]) -> None:
    description["model"]["merges"].reverse()


def a_merge_is_lost(description: dict[str, Any]) -> None:
    del description["model"]["merges"][40]


def a_byte_is_missing(description: dict[str, Any]) -> None:
    vocabulary = description["model"]["vocab"]
    del vocabulary["\u0143"]  # stands for byte 0xAD


def stripping(description: dict[str, Any]) -> None:
    description["added_tokens"][0]["lstrip"] = description["added_tokens"][0]["rstrip"] = True


def single_word(description: dict[str, Any]) -> None:
    description["added_tokens"][0]["single_word"] = True


def overlaps(description: dict[str, Any]) -> None:
    description["added_tokens"][1]["content"] = "<|"
    description["added_tokens"][2]["content"] = "|im"


def lower_case(description: dict[str, Any]) -> None:
    description["normalizer"] = {"type": "Lowercase"}


def added_after_composition(description: dict[str, Any]) -> None:
    description["added_tokens"][0].update(content="caf\u00e9", normalized=True)


def prefix_space(description: dict[str, Any]) -> None:
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    description["pre_tokenizer"] = step


@pytest.mark.parametrize(
    "change",
    [
        unknown_pattern, merges_in_another_order, a_merge_is_lost, a_byte_is_missing, stripping, single_word,
        overlaps, lower_case, added_after_composition, prefix_space,
    ],
)  # fmt: skip
def test_what_cannot_be_converted_exactly_is_left_to_tokenizers(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    """Each condition of the conversion, broken: slower, and still without a difference, whole and in pieces."""
    folder = changed(TINY_QWEN, tmp_path, change)
    tokenizer = Tokenizer(folder, SMALL_WINDOW_BYTES)
    assert not tokenizer.fast and tokenizer.why_slow
    wrong, _ = differences(tokenizer, folder, seed=3, count=400)
    assert wrong == []


def test_an_unknown_pattern_is_cut_at_special_tokens_only(tmp_path: Path) -> None:
    """Where words may end in unknown places, text is left whole."""
    tokenizer = Tokenizer(changed(TINY_QWEN, tmp_path, unknown_pattern), SMALL_WINDOW_BYTES)
    assert pieces_of(tokenizer, "some words " * 20) == ["some words " * 20]
    assert pieces_of(tokenizer, "some words " * 2 + "<|im_end|>more") == ["some words " * 2, "<|im_end|>more"]


def test_an_added_token_is_never_cut(tmp_path: Path) -> None:
    """One that holds a place where text may be cut: then only special tokens are safe."""

    def change(description: dict[str, Any]) -> None:
        description["added_tokens"][0]["content"] = "<tool calls begin>"

    folder = changed(TINY_QWEN, tmp_path, change)
    tokenizer = Tokenizer(folder, SMALL_WINDOW_BYTES)
    assert tokenizer.fast
    assert differences(tokenizer, folder, seed=5, count=1000)[0] == []


def test_ignoring_merges_needs_no_reachable_tokens(tmp_path: Path) -> None:
    """Whole words that no merge reaches are tokens for both, as in Llama-3's vocabulary."""

    def change(description: dict[str, Any]) -> None:
        description["model"]["ignore_merges"] = True
        description["model"]["vocab"]["zqzqzqz"] = 70_000

    folder = changed(TINY_LLAMA, tmp_path, change)
    tokenizer = Tokenizer(folder)
    assert tokenizer.fast
    assert tokenizer.encode("zqzqzqz", False).tolist() == [70_000]
    assert differences(tokenizer, folder, seed=4, count=400)[0] == []


def test_added_tokens_of_the_configuration_count(tmp_path: Path) -> None:
    """Tokens that only `tokenizer_config.json` lists are cut out as well."""
    folder = changed(TINY_QWEN, tmp_path, lambda description: None)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    config = {"added_tokens_decoder": {"8192": {"content": "<|extra|>", **flags}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = Tokenizer(folder)
    assert tokenizer.fast
    assert tokenizer.encode("<|extra|>", False).tolist() == [8192]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"model": 1}', b"[]"])
def test_a_missing_or_broken_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    """The operator reads which file is wrong."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    """So is `tokenizer_config.json`."""
    folder = changed(TINY_QWEN, tmp_path, lambda description: None)
    (folder / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        Tokenizer(folder)


def test_overlapping_tokens_are_found() -> None:
    """Sharing an end, lying inside another, or overlapping oneself."""
    assert overlapping(["<a>", "<b>", "</a>"]) == set()
    assert overlapping(["ab", "bc", "x"]) == {"ab", "bc"}
    assert overlapping(["xaby", "ab", "q"]) == {"xaby", "ab"}
    assert overlapping(["aba", "q"]) == {"aba"}
    assert overlapping(["ab", "abc"]) == {"ab", "abc"}
