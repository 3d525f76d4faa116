"""The KV cache: formats own bits, pages own tokens."""
