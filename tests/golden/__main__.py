"""Writes the golden bytes that are missing: `python -m tests.golden`."""

import json

from tests.golden import FILE, missing, read

entries = {**read(), **dict(missing())}
FILE.write_text(json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False) + "\n")
