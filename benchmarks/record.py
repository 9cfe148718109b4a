"""Results kept: one small JSON file that each benchmark writes its own part of."""

import json
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["keep"]

DIGITS = 4  # significant ones: no timing is known to more


def keep(path: Path | None, name: str, result: dict[str, Any]) -> None:
    """Print a result, and where there is a path put it there under its name; other names stay as they are."""
    result = rounded({"processor": processor(), "cores": os.cpu_count(), **result})
    print(json.dumps(result, indent=1))
    if path is None:
        return
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole[name] = result
    path.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Its name, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    names = [] if not about.exists() else [line for line in about.read_text().splitlines() if "model name" in line]
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def rounded(value: Any) -> Any:
    """The same with every float to four digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
