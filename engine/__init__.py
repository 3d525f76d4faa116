"""The inference engine: token ids in, logits out.  Text, printing and JSON live in `minikv`."""
