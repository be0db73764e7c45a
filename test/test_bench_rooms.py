"""The benchmark of the rooms: its cases are right, its check finds what is wrong."""

import dataclasses
import json
import pathlib
import sys

import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "bench"))
import bench_rooms
import room_cases
import summarize_rooms

SMALL = [
    room_cases.layer_norm("plain", 6, 64, 1),
    room_cases.layer_norm("segments", 6, 64, 0, 4),
    room_cases.lstm_gates("joined", 5, 4),
    room_cases.lstm_gates("four", 5, 4, is_joined=False),
    room_cases.cross_entropy("words", 6, 50),
    room_cases.embedding("words", 20, 8, 10),
    room_cases.l2_norm("weights", 32, 0.5, 8),
]


@pytest.fixture
def quick(monkeypatch):
    """Times SMALL cases, hardly at all."""
    monkeypatch.setattr(bench_rooms, "cases", lambda device: SMALL)
    monkeypatch.setattr(bench_rooms, "MAX_CALLS", 2)
    timed = bench_rooms.time_call
    monkeypatch.setattr(
        bench_rooms, "time_call", lambda f, sets, repeats=2: timed(f, sets, repeats, seconds=0)
    )


def test_the_table_and_the_file(quick, monkeypatch, tmp_path, capsys):
    path = tmp_path / "results.json"
    argv = ["bench_rooms.py", "--device", "CPU", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", argv)
    bench_rooms.main()
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    # dtypes and passes
    assert len(found["results"]) == 2 * 2 * len(SMALL) and found["environment"]["tensorflow"]
    for r in found["results"]:
        assert r["us"] > 0 and r["speedup"] > 0
        assert r["of_bound"] == pytest.approx(r["bound_us"] / r["us"])
    joined = [r for r in found["results"] if r["case"] == "joined" and r["dtype"] == "bfloat16"]
    # bytes over time, in two ways
    sizes = [round(r["gb_per_s"] * r["us"] * 1e3) for r in joined]
    assert sizes == [7 * 20 * 2, 19 * 20 * 2]
    for room in ("layer_norm", "lstm_gates", "cross_entropy", "embedding", "l2_norm"):
        assert f"geometric mean of the speed-ups of {room}: " in printed
    table = summarize_rooms.table(found["results"], "speedup").splitlines()
    assert table[0].endswith("| float32 | bfloat16 |") and len(table) == 7

    monkeypatch.setattr(sys, "argv", [*argv, "--room", "embedding", "--dtype", "float16"])
    bench_rooms.main()
    parts = json.loads(path.read_text())["results"]
    assert [r for r in parts if r["room"] != "embedding"] == [
        r for r in found["results"] if r["room"] != "embedding"
    ]
    assert [r["dtype"] for r in parts if r["room"] == "embedding"] == ["float16"] * 2


def test_cases_of_both_devices_exist():
    for device in ("CPU", "GPU"):
        names = [str(case) for case in room_cases.cases(device)]
        assert len(set(names)) == len(names) == 15


@pytest.mark.parametrize("name", ["forward", "training"])
def test_wrong_results_are_not_timed(name):
    case = SMALL[0]

    def wrong(x, g, b):
        return (case.theirs(x, g, b)[0] * (1 + 1e-4 * g),)

    def wrong_gradient(x, g, b):
        (y,) = case.theirs(x, g, b)
        return (tf.grad_pass_through(lambda t: t)(y) + 1e-3 * (b - tf.stop_gradient(b)),)

    wrong = dataclasses.replace(case, ours=wrong if name == "forward" else wrong_gradient)
    results = bench_rooms.bench_case(wrong, "float32", "CPU", 1, 1.0, False)
    with pytest.raises(
        SystemExit, match=f"axis 1 6x64 float32 {name}: result . is wrong: relative"
    ):
        list(results)
