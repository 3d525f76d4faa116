"""Codeneedle: how well a model repeats functions verbatim out of a long source it has just read."""
