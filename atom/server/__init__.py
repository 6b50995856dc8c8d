"""The HTTP door: OpenAI protocols, streaming, limits, keys, metrics. Owns text, never tensors."""
