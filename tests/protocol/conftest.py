"""Modules beside the tests of the protocol can be imported by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
