"""Where the device's time goes: a trace by kinds of kernels, from `train.py --profile`.

python examples/lstm/device_time.py runs/first
python examples/lstm/device_time.py runs/first --json times.json

On a GPU these are the kernels and copies of its streams. Without one they are the ops of the host's
threads, whose time is that of the thread that starts an op, not of those that help it.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import re

import errors
from errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The first kind that fits. "scope" is sought in an op's name, "op" must be its whole type; a kernel
# without an op, which TensorFlow did not trace, has a "kernel", sought in its name.
KINDS = {
    "optimizer": {"scope": "optimizer/", "op": "ResourceApplyAdam", "kernel": "ApplyAdam"},
    "sparse product": {"op": "BlocksparseMatmul.*", "kernel": "Matmul(Fprop|Dw).*Kernel|SumSplits"},
    "dense product": {
        "op": "(_Mkl|_)?(Native)?(Fused|Batch)?MatMul(V2)?|Einsum",
        "kernel": "gemm|cutlass|cublas|nvjet|xmma",
    },
    "layer norm": {"op": "BlocksparseLayerNorm.*", "kernel": "LayerNorm"},
    "gates": {"op": "BlocksparseLstmGates.*", "kernel": "LstmGates"},
    "embedding": {"op": "BlocksparseEmbedding.*", "kernel": "Embedding"},
    "softmax": {"op": "BlocksparseSoftmaxCrossEntropy.*", "kernel": "CrossEntropy"},
    "copies, casts": {
        "op": "(_Mkl)?(Pack|Unpack|Concat|Split|Slice|StridedSlice|Transpose|Cast|Reshape)V?2?",
        "kernel": "Memcpy|Memset",
    },
}
OTHER = "other"
LARGEST = 12  # ops of the second table


@dataclasses.dataclass(frozen=True)
class Event:
    """One kernel or op: its op's name and type ("" if unknown), its own name, times in ps."""

    scope: str
    op: str
    name: str
    begin: int
    end: int
    own: int  # without events inside it

    @property
    def kind(self):
        for kind, patterns in KINDS.items():
            if self.op and (
                re.search(patterns.get("scope", "^$"), self.scope)
                or re.fullmatch(patterns["op"], self.op)
            ):
                return kind
            if not self.op and re.search(patterns["kernel"], self.name):
                return kind
        return OTHER


def main():
    """Parses the flags and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", help="folder of a run or of traces, or a .xplane.pb file")
    parser.add_argument("--json", help="file to write the figures to")
    namespace = parser.parse_args()
    path = newest_trace(namespace.trace)
    device, events = read(path)
    result = summary(device, events)
    print(f"{path}\n{table(result)}")
    if namespace.json:
        try:
            pathlib.Path(namespace.json).write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{namespace.json} cannot be written: {error.strerror}") from error


def newest_trace(path):
    """The .xplane.pb file, or the newest in a folder."""
    path = pathlib.Path(path)
    if path.is_file():
        return path
    found = sorted(path.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(f"there is no trace in {path}; train.py --profile=3 makes one of 3 steps")
    return found[-1]


def read(path):
    """(device, [Event]) of a trace: of its GPUs, or of the host if it has none."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    try:
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module is its own affair
        raise UserError(f"{path} is not a trace of TensorFlow's profiler: {error}") from error
    gpus = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    hosts = [plane for plane in space.planes if plane.name == "/host:CPU"]
    if gpus:
        events = [event for plane in gpus for event in _events(plane, _of_kernel, "Stream")]
        device = f"{len(gpus)} GPU" + "s" * (len(gpus) > 1)
    else:
        events = [event for plane in hosts for event in _events(plane, _of_op, "")]
        device = "CPU"
    if not events:
        raise UserError(f"{path} holds no kernels and no ops")
    return device, events


def _events(plane, parse, prefix):
    chosen = [line for line in plane.lines if line.name.startswith(prefix)]
    for line in chosen or plane.lines:
        yield from _with_own_time(line, lambda event: parse(plane, event))


def _with_own_time(line, parse):
    """The line's events that `parse` gives a (scope, op, name), less the time of those inside."""
    spans = []
    for event in line.events:
        parts = parse(event)
        if parts is not None:
            begin = line.timestamp_ns * 1000 + event.offset_ps
            spans.append((begin, -begin - event.duration_ps, parts))
    spans.sort(key=lambda span: span[:2])
    inside, open_spans = [0] * len(spans), []
    for number, (begin, minus_end, _) in enumerate(spans):
        while open_spans and -spans[open_spans[-1]][1] <= begin:
            open_spans.pop()
        if open_spans:
            inside[open_spans[-1]] += -minus_end - begin
        open_spans.append(number)
    for (begin, minus_end, parts), less in zip(spans, inside, strict=True):
        yield Event(*parts, begin, -minus_end, max(-minus_end - begin - less, 0))


def _of_kernel(plane, event):
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "tf_op":
            op = stat.str_value or plane.stat_metadata[stat.ref_value].name
            scope, _, kind = op.rpartition(":")
            return scope, kind, plane.event_metadata[event.metadata_id].name
    return "", "", plane.event_metadata[event.metadata_id].name


def _of_op(plane, event):
    name = plane.event_metadata[event.metadata_id].name
    match = re.fullmatch(r"([^:\s]+):([A-Za-z_]\w*)", name)
    return (match[1], match[2], name) if match else None


def summary(device, events):
    """The figures of the tables, times in milliseconds."""
    kinds, ops, calls = (collections.Counter() for _ in range(3))
    for event in events:
        kinds[event.kind] += event.own
        calls[event.kind] += 1
        ops[event.op or event.name[:60], event.kind] += event.own
    total = sum(kinds.values())
    return {
        "device": device,
        "events": len(events),
        "span_ms": (max(e.end for e in events) - min(e.begin for e in events)) / 1e9,
        "busy_ms": _union(events) / 1e9,
        "total_ms": total / 1e9,
        "kinds": {
            kind: {"ms": kinds[kind] / 1e9, "share": kinds[kind] / total, "calls": calls[kind]}
            for kind in (*KINDS, OTHER)
        },
        "largest": [
            {"op": op, "kind": kind, "ms": time / 1e9, "share": time / total}
            for (op, kind), time in ops.most_common(LARGEST)
        ],
    }


def _union(events):
    """Time in which any event runs."""
    busy = last = 0
    for begin, end in sorted((event.begin, event.end) for event in events):
        busy += max(end - max(begin, last), 0)
        last = max(last, end)
    return busy


def table(result):
    """The tables as text."""
    lines = [
        f"{result['device']}: {result['events']:,} kernels or ops in {result['span_ms']:.1f} ms, "
        f"of which {result['busy_ms'] / result['span_ms']:.1%} busy",
        "",
        f"{'kind':16s} {'ms':>10s} {'share':>7s} {'calls':>8s}",
    ]
    for kind, row in result["kinds"].items():
        lines.append(f"{kind:16s} {row['ms']:10.2f} {row['share']:7.1%} {row['calls']:8,}")
    lines += [f"{'all':16s} {result['total_ms']:10.2f}", "", "the largest"]
    for row in result["largest"]:
        lines.append(f"{row['ms']:10.2f} {row['share']:7.1%}  {row['op']} ({row['kind']})")
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(main)
