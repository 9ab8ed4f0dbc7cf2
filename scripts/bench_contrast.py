"""Peak memory of the contrastive loss against the batch: whole, in chunks, in chunks going round.

python scripts/bench_contrast.py                          # 1k to 64k rows, plain to 16k, d = 256, on the CPU: half an hour
python scripts/bench_contrast.py --rows 1024 2048 --chunk 256

Every figure is of a process of its own: the highest resident memory over one forward and backward of InfoNCE between two
modalities, less what there was before (vectors included). Above ``--most`` plain rows are computed from 4·B² bytes a matrix
by the largest that was measured. ``ratio`` is over the row before, whose batch is half as large: 2 is linear, 4 is quadratic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

FORMS = {"plain": {}, "chunked": {"chunk": True}, "ring": {"chunk": True, "exchange": "ring"}}


def measured(form: str, rows: int, width: int, chunk: int) -> dict[str, float]:
    """In a process of its own: GB above what it had, and seconds."""
    import torch

    from mmkt.objectives.align import Align
    from mmkt.types import Batch, Encoded, Outputs

    settings = {name: chunk if value is True else value for name, value in FORMS[form].items()}
    objective = Align(width, ["a", "b"], {}, [], **settings)

    def pieces(n: int) -> tuple[Batch, Outputs]:
        vectors = {m: torch.randn(n, width, requires_grad=True) for m in "ab"}
        there, row = {m: torch.ones(n, dtype=torch.bool) for m in vectors}, torch.arange(n)
        encoded = {m: Encoded.of(x, there[m]) for m, x in vectors.items()}
        return Batch({}, there, {}, {}, {}, row, row, row, row), Outputs(encoded, encoded["a"], {}, {}, {})

    objective(None, *pieces(2 * chunk)).backward()  # type: ignore[arg-type]  # what torch imports and keeps at first use
    wanted = pieces(rows)
    before, start = _resident(), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
    objective(None, *wanted).backward()  # type: ignore[arg-type]
    gone = time.perf_counter() - start
    return {"GB": (_resident("VmHWM") - before) / 2**20, "s": gone}


def _resident(name: str = "VmRSS") -> int:
    """KiB of this process, now or (VmHWM) at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def asked(form: str, rows: int, width: int, chunk: int) -> dict[str, float]:
    """The same, from here."""
    code = f"import bench_contrast as b, json; print(json.dumps(b.measured({form!r}, {rows}, {width}, {chunk})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024 * 2**k for k in range(7)])
    parser.add_argument("--most", type=int, default=16384, help="rows to which plain is measured")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    options = parser.parse_args()
    print(f"{'rows':>8}" + "".join(f"{form + ' GB':>14}{'ratio':>8}{'s':>8}" for form in FORMS), flush=True)
    before: dict[str, float] = {}
    for rows in options.rows:
        line = f"{rows:>8}"
        for form in FORMS:
            if form == "plain" and rows > options.most:
                gb, seconds = before[form] * 4, ""
            else:
                found = asked(form, rows, options.width, options.chunk)
                gb, seconds = found["GB"], f"{found['s']:.1f}"
            ratio = f"{gb / before[form]:.2f}" if before.get(form) else ""
            star = "*" if not seconds else ""
            line += f"{f'{gb:.3f}{star}':>14}{ratio:>8}{seconds:>8}"
            before[form] = gb
        print(line, flush=True)
    print("* computed: the loss needs B × B scores, four times as many")


if __name__ == "__main__":
    main()
