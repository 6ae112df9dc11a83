"""How well requests are placed: a fleet in virtual time, in which the shipped core decides.

    python -m benchmarks.quality --trace FILE.jsonl[.gz] --pods 16 --profile 70b --copies 3 --speed 0.8
    python -m benchmarks.quality --trace AGENTS.jsonl.gz --pods 16 --profile 32b --users 160 --kv-tokens 960000

Traces of requests come when they come (`--copies`, `--speed`); of agents' sessions, users wait for their answers
(`--users`, `--horizon`). `--policy` is one of `scoring.policy`, or `bound`: one cache for all pods, requests in their
order, which no router reaches. The first fifth of the time is not counted. `--json`: one line. All that is
measured of placing, in one table: `python -m benchmarks.quality --table FOLDER` (see `quality_table`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks import quality_table
from benchmarks.quality_runs import BOUND, parser, run
from router.config.reading import parse_policy
from router.errors import BadRecording, ConfigError
from router.plan.figures import Figures


def shown(found: Figures) -> dict[str, Any]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in found._asdict().items()}


def main() -> None:
    given = sys.argv[1:]
    if given[:1] == ["--table"]:
        quality_table.main(given[1:])
        return
    options = parser(__doc__).parse_args(given)
    try:
        parse_policy(options.policy, BOUND)
    except ConfigError as error:
        sys.exit(error.message)
    try:
        found = shown(run(options))
    except BadRecording as error:
        sys.exit(f"{options.trace}: {error.message}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        sys.exit(f"{options.trace}: can't be read: {getattr(error, 'strerror', None) or error}")
    print(json.dumps(found) if options.json else "  ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
