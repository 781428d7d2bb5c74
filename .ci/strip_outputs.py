"""Remove outputs and execution counts from notebooks; exits with 1 where there were any, as pre-commit expects."""

import json
import sys
from pathlib import Path


def strip(file: Path) -> bool:
    """Strip one notebook in place; whether anything was there to remove."""
    content = json.loads(file.read_text("utf-8"))
    found = False
    for cell in content["cells"]:
        if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None):
            cell["outputs"], cell["execution_count"], found = [], None, True
    if found:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return found


if __name__ == "__main__":
    stripped = [name for name in sys.argv[1:] if strip(Path(name))]
    print("\n".join(f"{name}: outputs removed" for name in stripped), end="\n" if stripped else "")
    sys.exit(bool(stripped))
