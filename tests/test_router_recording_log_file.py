"""A file that several append to: bounded, the newest kept, and every line whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.recording.log_file import LogFile

LINE = b"x" * 99 + b"\n"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """Within the bound, at any time; the older half stands beside."""
    path, file = tmp_path / "folder" / "log", LogFile(str(tmp_path / "folder" / "log"), 2000)
    older = path.with_name("log.1")
    begins = [file.append(b"%099d\n" % number) for number in range(57)]
    lines = older.read_bytes().splitlines() + path.read_bytes().splitlines()
    assert [int(line) for line in lines] == list(range(57))[-len(lines) :] and 10 <= len(lines) <= 20
    assert path.stat().st_size + older.stat().st_size <= 2000
    assert [number for number, new in enumerate(begins) if new] == [0, 10, 20, 30, 40, 50]
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_write_one_file(tmp_path: Path) -> None:
    """Whoever is the second to find it full goes on in the new one."""
    one, other = (LogFile(str(tmp_path / "log"), 4000) for _ in range(2))
    for number in range(30):
        (one if number % 2 else other).append(b"%099d\n" % number)
    lines = (tmp_path / "log.1").read_bytes().splitlines() + (tmp_path / "log").read_bytes().splitlines()
    assert [int(line) for line in lines] == list(range(30))
    (tmp_path / "log").unlink()
    assert one.append(LINE) and not other.append(LINE)
    one.close()
    assert not one.append(LINE)
    assert (tmp_path / "log").read_bytes() == 3 * LINE


def test_more_than_a_half_at_once(tmp_path: Path) -> None:
    """As many whole lines as there is room for."""
    file = LogFile(str(tmp_path / "log"), 1000)
    file.append(9 * LINE)
    assert (tmp_path / "log").read_bytes() == 5 * LINE
    file.append(b"y" * 600 + b"\n")
    assert (tmp_path / "log").read_bytes() == 5 * LINE


def test_what_can_not_be_written(tmp_path: Path) -> None:
    """Is said to who calls; later it may work."""
    (tmp_path / "folder").write_text("")
    file = LogFile(str(tmp_path / "folder" / "log"), 1000)
    with pytest.raises(OSError):
        file.append(LINE)
    (tmp_path / "folder").unlink()
    assert file.append(LINE)
