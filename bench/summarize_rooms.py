"""Prints a results file of bench_rooms.py as Markdown: a row for each room, in geometric means.

python bench/summarize_rooms.py bench/results/NAME.json
"""

import json
import math
import sys

PASSES = ("forward", "training")
MEASURES = {"speedup": "speed-up over TensorFlow's ops", "of_bound": "share of the memory bound"}


def table(results, measure):
    """Markdown: cells "forward / training" for each dtype."""
    dtypes = list(dict.fromkeys(r["dtype"] for r in results))
    lines = [
        f"| {MEASURES[measure]}, {' / '.join(PASSES)} | " + " | ".join(dtypes) + " |",
        "| --- |" + " --- |" * len(dtypes),
    ]
    for room in dict.fromkeys(r["room"] for r in results):
        cells = [
            " / ".join(_mean(results, measure, room, dtype, name) for name in PASSES)
            for dtype in dtypes
        ]
        lines.append(f"| {room} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(results, measure, room, dtype, name):
    wanted = {"room": room, "dtype": dtype, "pass": name}
    logs = [math.log(r[measure]) for r in results if measure in r and wanted.items() <= r.items()]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else "-"


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path) as file:
            found = json.load(file)
        for measure in MEASURES:
            print(table(found["results"], measure), end="\n\n")
