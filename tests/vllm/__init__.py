"""What the trainer publishes, in vLLM. Not part of `make test`: `make test-vllm` installs vLLM and runs live.py."""
