"""`python -m minikv`."""

from minikv.cli import main

main()
