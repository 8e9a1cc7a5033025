"""Models behind a vLLM server: what is sent there, and what of its replies can be used. No torch, no trl."""
