"""How events are believed in this process: chosen once, when it starts."""

from __future__ import annotations

import logging

from indexer.way import PLAIN, Way
from router.errors import ConfigError

log = logging.getLogger(__name__)


def way_of(compiled: bool | None) -> Way:
    """The compiled way if it is wanted, or (None) if it can be had; ConfigError if it is wanted and can't.

    It may take seconds: what is not kept from an earlier start is compiled now, so that nothing waits for it later.
    """
    if compiled is False:
        return PLAIN
    try:
        from indexer import compiled as extra
    except ImportError as error:
        if compiled:
            raise ConfigError(f"index.compiled needs more: pip install 'warmroute[compiled]' ({error})") from error
        return PLAIN
    made = extra.way()
    log.info("events are believed in machine code")
    return made
