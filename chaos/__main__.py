"""Real HAProxys under constant load, an agent, and trouble: each kind is a file of `troubles`.

    python chaos [--seconds 30] [KIND]...

The ledger must balance: each request has its own answer, or an error that HAProxy or the agent told.
Besides, each kind has its expectations. After the trouble all answers must be right again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "troubles")]

from stage import MODES, Stage, haproxies  # noqa: E402

AT_ONCE = 2
"""Troubles, each on a stage of its own."""
KINDS = sorted(path.stem for path in (HERE / "troubles").glob("*.py"))


def run(kind: str, binaries: dict[str, str], seconds: float) -> bool:
    """Whether all was as expected."""
    module: ModuleType = importlib.import_module(kind)
    if why := getattr(module, "MISSING", ""):
        print(f"{kind:12} skipped: {why}", flush=True)
        return True
    started = time.monotonic()
    getattr(module, "prepare", lambda: None)()
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder), binaries, module.NEEDS) as st:
        module.trouble(st, seconds)
        found = list(st.wait_for_calm())
        ledger = st.ledger
        found += module.complaints(st, ledger)
        if not ledger.balanced:
            found += ["the ledger does not balance", *ledger.broken[:10]]
        if "Traceback" in (log := st.agent.log()) and not ledger.failed:
            found.append(log[log.index("Traceback") - 300 :][:3000])
        each = {name: load.ledger for name, load in st.loads.items()}
    print(f"{kind:12} {time.monotonic() - started:4.0f} s  {ledger}", flush=True)
    if found:
        print((module.__doc__ or "").strip(), *found, sep="\n", flush=True)
        print(*(f"HAProxy {name}: {one}" for name, one in each.items()), sep="\n", flush=True)
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="of each trouble")
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="KIND")
    arguments = parser.parse_args()
    binaries = haproxies()
    if not binaries:
        sys.exit(f"HAProxy {', '.join(MODES)}: none is installed")
    print(f"HAProxy {', '.join(binaries)}", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        kinds = arguments.kinds or KINDS
        results = list(pool.map(lambda kind: run(kind, binaries, arguments.seconds), kinds))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
