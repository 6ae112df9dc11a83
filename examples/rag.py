"""Questions about shared documents: put the document first and the question last, and only the question is computed.

python examples/rag.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
DOCUMENTS = {
    name: f"{name}: " + f"what the {name} says about its subject, at length. " * 60 for name in ("report", "contract")
}
QUESTIONS = ("What is it about?", "Who wrote it?", "What follows from it?")

client = httpx.Client(base_url=URL, timeout=15)
model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]


def cached_share(document: str, question: str, document_first: bool) -> float:
    """How much of the prompt a pod had cached."""
    parts = [document, question] if document_first else [question, document]
    body = {"model": model, "messages": [{"role": "user", "content": "\n\n".join(parts)}], "max_tokens": 8}
    usage = client.post("/v1/chat/completions", json=body).raise_for_status().json()["usage"]
    return float((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) / usage["prompt_tokens"])


for name, document in DOCUMENTS.items():
    for question in QUESTIONS:
        good, bad = cached_share(document, question, True), cached_share(document, question, False)
        print(f"{name:9} {question:24} document first: {good:4.0%} cached   question first: {bad:4.0%}")
