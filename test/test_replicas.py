"""Several replicas by tf.distribute: the LSTM example and Keras layers.

Devices are logical CPUs, workers processes on this machine. Each case runs in processes of its own,
forked from one that has imported TensorFlow already; they import this file before they choose their
devices, so it must not import TensorFlow.
"""

import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import traceback

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import checkpoint
import cluster
import corpus
import runs
import settings
from errors import UserError

TEXT = b"the quick brown fox jumps over the lazy dog and on. " * 40
MODEL = {"hidden": 16, "embedding": 8, "block-size": 8, "internal-steps": 2, "layout": "ba_1",
         "batch": 4, "window": 6, "steps": 12, "warmup": 2, "clip": 0.5}  # fmt: skip
CONTROL = {"log-every": 2, "save-every": 4, "validate-every": 12, "threads": 1, "wait": 60}
RATE = 0.01

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tensorflow", "keras", "blocksparse"])


class Child:
    """A process that calls function(*args), what it prints goes to a file."""

    def __init__(self, path, function, *args, **environ):
        self.path = path
        environ = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", **environ}
        self.process = processes.Process(target=_run, args=(path, environ, function, args))
        self.process.start()

    def end(self, status=0, limit=60):
        """What it has printed, when it has ended; AssertionError if not with this status."""
        self.process.join(limit)
        if self.process.is_alive():
            self.process.kill()
        text = self.path.read_text()
        assert self.process.exitcode == status, text
        return text


def _run(path, environ, function, args):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environ)
    try:
        function(*args)
    except Exception:
        traceback.print_exc()
        raise


def flags(**kwargs):
    return settings.with_defaults({**MODEL, **kwargs}, settings.STORED)


def train(argv, signals):
    """The program; before step k it sends itself signals[k]."""
    import errors
    import train as program
    import training

    def step(self, number, *args):
        if number in signals:
            os.kill(os.getpid(), signals[number])
        return plain(self, number, *args)

    plain, training.Trainer.step = training.Trainer.step, step
    sys.argv = ["train.py", *argv]
    errors.run(program.main)


class Program:
    """Runs train.py on a text of its own; `out` is the folder of the run."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "run"
        folder.mkdir(exist_ok=True)
        (folder / "text").write_bytes(TEXT)
        self.ports = free_ports(2)

    def start(self, name="alone", out=None, signals=(), environ=(), **control):
        values = {**MODEL, **CONTROL, "data": self.folder / "text", **control}
        argv = [f"--{key}={value}" for key, value in values.items()]
        argv += [f"--out={out or self.out}", "--no-pictures"]
        return Child(self.folder / f"{name}.txt", train, argv, dict(signals), **dict(environ))

    def start_worker(self, index, environ=(), **kwargs):
        """One of two."""
        workers = [f"localhost:{port}" for port in self.ports]
        environ = {**config({"worker": workers}, "worker", index), **dict(environ)}
        return self.start(f"worker{index}", environ=environ, **kwargs)

    def start_two(self, outs=(None, None), signals=((), ())):
        """Both, with their folders and signals."""
        return [self.start_worker(i, out=outs[i], signals=signals[i]) for i in range(2)]

    def result(self):
        """(log without times, arrays) of the run."""
        log = [{key: value for key, value in record.items() if key != "seconds"}
               for record in runs.read_log(self.out / runs.LOG)]  # fmt: skip
        return log, checkpoint.load(self.out)[0]


def config(jobs, kind, index):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def assert_same(one, other):
    """Logs and arrays are the same, bit for bit."""
    assert one[0] == other[0]
    assert list(one[1]) == list(other[1])
    for name, array in one[1].items():
        np.testing.assert_array_equal(array, other[1][name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(log, arrays) of a run on two replicas."""
    program = Program(tmp_path_factory.mktemp("uninterrupted"))
    text = program.start(replicas=2).end()
    assert "12 steps of 4 x 6 bytes" in text and "on 2 replicas" in text
    summary = json.loads((program.out / runs.SUMMARY).read_text())
    assert summary["replicas"] == 2
    return program.result()


# ---- MirroredStrategy ----


def compare_replicas(folder, values):
    """Two replicas of 2 streams against one of 4: losses, norms, state, parameters, validation."""
    import device

    device.prepare(threads=1, replicas=2)

    import replicas
    import tensorflow as tf
    from model import config_of
    from training import Trainer

    tf.config.experimental.enable_tensor_float_32_execution(False)
    values = flags(**values)
    text = corpus.Text("text", [folder / "text"])
    trainers = [Trainer(config_of(values), values, replicas.open_replicas(n)) for n in (1, 2)]
    batches = corpus.Batches(text, 0, 60, 4, 6)  # two steps an epoch
    arrays = trainers[1].arrays()
    for step in range(5):
        for trainer in trainers:  # a checkpoint of two goes on with one, and the reverse
            trainer.restore(arrays, "two")
            for name, array in trainer.arrays().items():
                np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        results = [trainer.step(step, *batches(step), RATE) for trainer in trainers]
        np.testing.assert_allclose(*results, rtol=1e-5)
        one, arrays = (trainer.arrays() for trainer in trainers)
        assert list(one) == list(arrays) and one["adam/updates"] == step + 1
        for name in one:
            # Adam divides by the variance's root, which magnifies what is lost by rounding.
            atol = RATE / 20 if name.startswith("model/") else 1e-5 * np.abs(one[name]).max()
            np.testing.assert_allclose(one[name], arrays[name], rtol=0, atol=atol, err_msg=name)
    # parts that are not equally long, so that a mean of replicas' means would be another
    validation = [list(corpus.evaluation_batches(text, 100, 121, 4, 3))] * 2
    bpc = [trainer.evaluate(part) for trainer, part in zip(trainers, validation, strict=True)]
    np.testing.assert_allclose(*bpc, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1], ids=["axis0", "axis1"])
def test_two_replicas_are_one_with_all_their_streams(axis, tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    Child(tmp_path / "output.txt", compare_replicas, tmp_path, {"feature-axis": axis}).end()


def overflow_in_one_replica():
    """A float16 gradient that is not finite in one replica; other masks of dropout in each."""
    import device

    device.prepare(threads=1, replicas=2)

    import replicas
    import tensorflow as tf
    from model import config_of
    from training import Trainer

    values = flags(**{"dtype": "float16", "update-dropout": 0.5})
    trainer = Trainer(config_of(values), values, replicas.open_replicas(2))
    before = {**trainer.arrays(), "adam/loss_scale": np.float32(64)}
    before["state/h"] += np.linspace(-0.5, 0.5, 16, dtype=np.float32)
    poison = np.float32([[0], [0], [np.nan], [0]])
    rows = np.frombuffer(TEXT[:7], np.uint8)[:, np.newaxis].repeat(4, axis=1)  # the same in all
    for arrays, updates in (before, 1), ({**before, "state/h": before["state/h"] + poison}, 0):
        trainer.restore(arrays, "before")
        _, norm = trainer.step(1, rows[:-1], rows[1:], False, RATE)
        after = trainer.arrays()
        assert bool(tf.math.is_finite(norm)) == bool(updates)
        assert after["adam/updates"] == updates
        assert after["adam/loss_scale"] == (64 if updates else 32)
        is_same = np.array_equal(after["model/softmax_w"], before["model/softmax_w"])
        assert is_same == (not updates)
        assert not np.array_equal(after["state/c"][0], after["state/c"][2])
    for variable in trainer.model.parameters.values():
        np.testing.assert_array_equal(*(copy.numpy() for copy in variable.values))


def test_an_overflow_in_one_replica_is_skipped_in_all(tmp_path):
    Child(tmp_path / "output.txt", overflow_in_one_replica).end()


def test_replicas_continue_after_a_kill(uninterrupted, tmp_path):
    program = Program(tmp_path)
    program.start(replicas=2, signals={6: signal.SIGKILL}).end(-signal.SIGKILL)
    assert checkpoint.steps_in(program.out) == [4]
    assert "from step 4 on" in program.start(replicas=2).end()
    assert_same(program.result(), uninterrupted)


def test_streams_must_be_shared_equally(tmp_path):
    text = Program(tmp_path).start(replicas=3).end(2)
    assert "--batch is the number of streams of all replicas together and must be a multiple of " \
        "their number, 3. Received: 4" in text  # fmt: skip


# ---- MultiWorkerMirroredStrategy ----


def test_workers_end_together_and_continue(uninterrupted, tmp_path):
    program = Program(tmp_path)
    nowhere = tmp_path / "nowhere"
    # A signal to one stops both, at a line of the log. Only the chief writes.
    workers = program.start_two((program.out, nowhere), ((), {4: signal.SIGTERM}))
    for worker in workers:
        assert "stopped after step 6; the same command continues" in worker.end(2)
    assert checkpoint.steps_in(program.out) == [4, 6] and not nowhere.exists()

    # Each must find the checkpoint.
    for number, worker in enumerate(program.start_two((program.out, nowhere))):
        text = worker.end(2)
        assert f"the workers differ in the checkpoint. Worker {number}: " in text
        assert ('{"seconds": ' in text) == (number == 0)

    # One that dies ends the other.
    workers = program.start_two(signals=((), {9: signal.SIGKILL}))
    workers[1].end(-signal.SIGKILL)
    text = workers[0].end(2, limit=40)
    assert "worker 0 has lost another one, which has ended, stands still or cannot be reached. " \
        "Start all of them again: they continue from the last checkpoint. TensorFlow: " \
        in text  # fmt: skip
    assert checkpoint.steps_in(program.out) == [6, 8]

    for worker in program.start_two():
        worker.end()
    assert_same(program.result(), uninterrupted)


def test_a_worker_waits_so_long_and_no_longer(tmp_path):
    program = Program(tmp_path)
    text = program.start_worker(0, wait=1).end(1)
    assert "waits for the others, 1 s at most" in text and "Timeout (0:00:01)!" in text


# ---- GPUs ----


@pytest.fixture
def two_gpus():
    import tensorflow as tf

    if len(tf.config.list_physical_devices("GPU")) < 2:
        pytest.skip("TensorFlow sees one GPU")


@pytest.mark.gpu
def test_two_gpus_are_one_with_all_their_streams(two_gpus, tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    Child(tmp_path / "output.txt", compare_replicas, tmp_path, {}, **environ).end()


@pytest.mark.gpu
def test_workers_with_a_gpu_each_are_one_with_two(two_gpus, tmp_path):
    results = []
    for name in ("one", "two"):
        program = Program(tmp_path / name)
        if name == "one":
            program.start(replicas=2, environ={"CUDA_VISIBLE_DEVICES": "0,1"}).end()
        else:
            workers = [
                program.start_worker(i, environ={"CUDA_VISIBLE_DEVICES": str(i)}) for i in range(2)
            ]
            for worker in workers:
                worker.end()
        results.append(program.result()[0])
    for one, other in zip(*results, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


# ---- Keras ----


def fit_on_two():
    """keras.Model.fit of MLSTM under MirroredStrategy and without, on the same batches."""
    import device

    device.prepare(threads=1, replicas=2)

    import keras
    import tensorflow as tf

    from blocksparse import MLSTMConfig
    from blocksparse.layers import MLSTM

    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 5, 8)).astype(np.float32)
    y = x.sum((1, 2), keepdims=True)[:, 0]

    def fit():
        keras.utils.set_random_seed(1)
        config = MLSTMConfig(nhidden=16, nembd=8, isteps=2, block_size=8, masks="ba_1")
        layers = [MLSTM(config), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((5, 8)), *layers])
        model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "mse")
        before = model.get_weights()
        history = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        return model, before, history.history["loss"]

    plain, before, losses = fit()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        mirrored, _, mirrored_losses = fit()
    assert losses[2] < losses[0]
    np.testing.assert_allclose(mirrored_losses, losses, rtol=1e-4)
    for old, one, other in zip(before, plain.weights, mirrored.weights, strict=True):
        atol = 1e-3 * np.abs(one.numpy() - old).max()  # of how far they have come
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=atol)
        copies = [copy.numpy() for copy in strategy.experimental_local_results(other.value)]
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)
    np.testing.assert_allclose(mirrored.predict(x, verbose=0), plain(x), rtol=0, atol=1e-4)


def test_keras_fits_the_layer_on_two_replicas(tmp_path):
    Child(tmp_path / "output.txt", fit_on_two).end()


# ---- what needs no TensorFlow ----


def test_the_cluster_is_that_of_tf_config():
    assert cluster.from_environment({}) is cluster.ALONE
    assert cluster.from_environment({"TF_CONFIG": "{}"}) is cluster.ALONE
    assert cluster.from_environment(config({"worker": ["a:1"]}, "worker", 0)) is cluster.ALONE
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    found = cluster.from_environment(config(jobs, "worker", 1))
    assert found == cluster.Cluster(("a:1", "b:1", "c:1"), 2) and not found.is_chief
    assert cluster.from_environment(config(jobs, "chief", 0)).is_chief
    del jobs["chief"]
    assert cluster.from_environment(config(jobs, "worker", 0)).is_chief


@pytest.mark.parametrize(
    "environ",
    [
        {"TF_CONFIG": "{"},
        {"TF_CONFIG": "[]"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'},
        config({"worker": ["a:1", "b:1"]}, "worker", 2),
        config({"worker": ["a:1", "b:1"]}, "chief", 0),
        config({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, "worker", 0),
        config({"worker": ["a:1", "b:1"]}, "worker", "0"),
    ],
)
def test_a_wrong_tf_config_is_named(environ):
    with pytest.raises(UserError, match="TF_CONFIG must be such as .* Received: "):
        cluster.from_environment(environ)


def test_replicas_read_their_streams_of_the_batch(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    text = corpus.open_text(tmp_path / "text")
    for parts in ((range(0, 3), range(3, 6)), (range(0, 2), range(2, 4), range(4, 6))):
        whole, *shares = (corpus.Batches(text, 5, 400, 6, 7, part) for part in (None, *parts))
        for step in (0, 3, whole.steps_per_epoch):
            for number in range(2):
                joined = np.concatenate([share(step)[number] for share in shares], axis=1)
                np.testing.assert_array_equal(joined, whole(step)[number])
        whole, *shares = (
            list(corpus.evaluation_batches(text, 5, 400, 6, 7, part)) for part in (None, *parts)
        )
        for number in range(3):
            for window, *split in zip(whole, *shares, strict=True):
                joined = np.concatenate([share[number] for share in split], axis=1)
                np.testing.assert_array_equal(joined, window[number])


def test_a_run_that_does_not_write_leaves_no_trace(tmp_path):
    run = runs.Run(tmp_path / "run", {}, writes=False)
    run.log.write(step=1)
    run.save(1, {}, {}, keep=1)
    assert run.step == 1 and not (tmp_path / "run").exists()
    chief = runs.Run(tmp_path / "run", {"hidden": 64})
    chief.save(3, {"w": np.zeros(3)}, {"seconds": 1.5}, keep=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    run = runs.Run(tmp_path / "run", {"hidden": 64}, writes=False)  # while the chief has it
    run.save(4, {"w": np.zeros(3)}, {"seconds": 2.5}, keep=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(UserError, match="--hidden contradicts"):
        runs.Run(tmp_path / "run", {"hidden": 32}, writes=False)
