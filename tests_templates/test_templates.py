"""Real chat templates: the prompts' texts are those that real vLLM makes."""

from __future__ import annotations

import pytest

from tests_templates.compare import Difference, differences
from tests_templates.conftest import LINES
from tests_templates.conversations import CONVERSATIONS
from tests_templates.install import templates
from tests_templates.known import KNOWN
from tests_vllm.install import version_in, vllm_venv


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[Difference]:
    """All differences; they are told at the end, too."""
    sources = templates()
    assert sources and version_in(vllm_venv()) is not None, "`make test-templates` installs what is missing"
    found = list(differences(sources, CONVERSATIONS, tmp_path_factory.mktemp("templates")))
    lines = [f"{len(sources) * len(CONVERSATIONS):,} pairs of {len(sources)} templates and {len(CONVERSATIONS)} chats"]
    lines += [f"{len(found)} differ, {sum(one.reason is None for one in found)} for no known reason"]
    pytestconfig.stash[LINES] = lines + [f"{one} ({one.reason or 'unknown'})" for one in found]
    return found


def test_all_texts_are_vllms(found: list[Difference]) -> None:
    """But for what is listed with its reason."""
    unknown = [one for one in found if one.reason is None]
    assert not unknown, "\n".join(map(str, unknown[:20]))


def test_what_is_listed_is_there(found: list[Difference]) -> None:
    """A reason that no difference has any more goes."""
    assert [known for known in KNOWN if not any(known.covers(*one) for one in found)] == []
