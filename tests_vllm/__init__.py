"""The gateway in front of two real vLLM servers on the CPU: `make test-vllm`. Not part of `make test`."""
