"""The model: a declarative spec, weights bound by name, one decoder."""
