"""Let these tests import the formats' awkward pages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kv"))
