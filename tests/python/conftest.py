"""Points `import mdn` at the build under test (MDN_BUILD, default build/)."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("MDN_LIBRARY", os.environ.get("MDN_BUILD", str(ROOT / "build")))
sys.path.insert(0, str(ROOT / "python"))
