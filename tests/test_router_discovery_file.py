"""Pods from a file: read again when it changes, kept when it is wrong."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from router.discovery.file import FileSource, pods_of
from router.discovery.found import Change, FoundPod, Gone

ONE = '- {name: a, address: "http://10.0.0.1:8000"}\n'
TWO = '- {name: b, address: "http://10.0.0.2:8000", events: "tcp://10.0.0.2:5557"}\n'


def told(changes: list[Change]) -> list[str]:
    return [f"-{each.uid}" if isinstance(each, Gone) else f"+{each.pod.name}" for each in changes]


async def test_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is there, then what changes; a file that is broken or gone for a while changes nothing, and is told once."""
    file = tmp_path / "pods.yaml"
    file.write_text(ONE)
    source = FileSource(str(file), 0.01)
    async with contextlib.aclosing(source.changes()) as changes, asyncio.timeout(10):
        assert told(await anext(changes)) == ["+a"]
        file.write_text(ONE + TWO)
        assert told(await anext(changes)) == ["+b"]
        file.write_text("- {name: a, adress: 1}\n")
        following = asyncio.ensure_future(anext(changes))
        while not caplog.messages:
            await asyncio.sleep(0.01)
        file.unlink()
        while len(caplog.messages) < 2:
            await asyncio.sleep(0.01)
        file.write_text(TWO)
        assert told(await following) == ["-a"]
        file.write_text(TWO.replace("10.0.0.2:8000", "10.0.0.9:8000"))
        (change,) = await anext(changes)
        assert isinstance(change, FoundPod) and change.pod.address == "http://10.0.0.9:8000"
    assert len(caplog.messages) == 2 and "0.address" in caplog.messages[0]


async def test_a_file_that_is_not_there_at_first(tmp_path: Path) -> None:
    """There are no pods yet, and that is said at once."""
    source = FileSource(str(tmp_path / "later.yaml"), 0.01)
    async with contextlib.aclosing(source.changes()) as changes, asyncio.timeout(10):
        assert await anext(changes) == []
        (tmp_path / "later.yaml").write_text(ONE)
        assert told(await anext(changes)) == ["+a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"), ("# none\n", "is empty"), ("a: [", "no YAML"), ("a: b", "list"), (ONE + ONE, "the name a"),
        (ONE + ONE.replace("name: a", "name: c"), "address"),
        ("- {name: a}\n", "0.address"), ("- {name: a, address: nowhere}\n", "0.address"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, content: str, said: str) -> None:
    """One line that says what is wrong."""
    file = tmp_path / "pods.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        pods_of(file)
    assert "\n" not in str(error.value)
