"""Evaluation tools on the real packed cache."""
