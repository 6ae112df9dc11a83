"""Another policy beside the one that decides: what it would have picked is counted, and nothing else comes of it."""

from __future__ import annotations

from collections.abc import Sequence

from scorer.crowd import Rivals
from scorer.pick import pick
from scorer.policies import AskedPrompt, Policy, PolicyName, Settings, policy_of


class Shadow:
    """See the module. `picks`: so many it has made, `same` of them as it was decided."""

    def __init__(self, settings: Settings) -> None:
        self.name: PolicyName = settings.policy
        self.picks = 0
        self.same = 0
        self.policy: Policy = policy_of(settings)

    def look(
        self,
        candidates: Rivals,
        chosen: int,
        turn: int,
        slowness: Sequence[float] | None,
        asked: AskedPrompt | None,
    ) -> int:
        """The number of the candidate that it would have picked; `chosen` was."""
        picked = pick(candidates, self.policy, turn, slowness, asked)
        number = picked.best.number
        self.policy.sent(picked.candidates, number, asked)
        self.picks += 1
        self.same += number == chosen
        return number
