"""Let these tests import the list of op cases one folder up and the formats' awkward pages."""

import sys
from pathlib import Path

ENGINE = Path(__file__).parents[1]
sys.path[:0] = [str(ENGINE), str(ENGINE / "kv")]
