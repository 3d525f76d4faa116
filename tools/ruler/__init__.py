"""Recall beyond the single copy: seeded tasks in the manner of RULER (Hsieh et al., 2024).

Needles are hidden in a long text and asked for; a packed cache is compared with the 16-bit cache on
the very same texts.
"""
