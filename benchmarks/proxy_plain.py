"""What the plain proxies have in common, whatever their client: needs no more than FastAPI and uvicorn."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

NOT_FORWARDED = {"connection", "keep-alive", "te", "transfer-encoding", "upgrade", "host", "content-length"}


def serve(create_app: Callable[[list[str]], FastAPI], description: str | None) -> None:
    """Serve the application that `create_app` makes of the pods' addresses, as the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pods", required=True, help="comma-separated addresses")
    options = parser.parse_args()
    app = create_app(options.pods.split(","))
    uvicorn.run(app, host="127.0.0.1", port=options.port, loop="uvloop", access_log=False, log_level="warning")
