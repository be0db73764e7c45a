"""Trains a byte-level language model, a block-sparse multiplicative LSTM, on any text.

    python examples/lstm/train.py --out runs/first
    python examples/lstm/train.py --out runs/wiki --data enwik8 --parameters 11e6 --density 0.03

The same command continues a run that was interrupted, at any moment and by whatever; on a CPU the
losses are then those of a run that was not, bit for bit.

    python examples/lstm/train.py --out runs/two --replicas 2

trains on two GPUs. With TF_CONFIG, the same command on each of several machines trains on all.
"""

import argparse
import os
import signal
import textwrap
import time

import cluster
import compressors
import corpus
import errors
import progress
import runs
import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PRIME, TEMPERATURE = 500, 0.7  # of the text at the end: bytes that the model reads before


def main():
    """Parses the flags and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/default", help="folder of the run [runs/default]")
    settings.add_flags(
        parser,
        ("model", settings.MODEL),
        ("text", settings.DATA),
        ("training", settings.TRAINING),
        ("control; may change when a run is continued", settings.CONTROL),
    )
    namespace = parser.parse_args()
    control = settings.with_defaults(settings.given(namespace, settings.CONTROL), settings.CONTROL)
    workers = cluster.from_environment()
    given = settings.given(namespace, settings.STORED)
    run = runs.Run(namespace.out, given, writes=workers.is_chief)
    text = corpus.open_text(run.flags["data"], run.flags["files"])
    run.check_text(text)
    train(run, text, control, workers)


def train(run, text, control, workers=cluster.ALONE):
    """Trains from run.step to the last step, and sums up."""
    import device
    from replicas import open_replicas

    device.prepare(control["threads"], control["replicas"])
    replicas = open_replicas(control["replicas"], workers, control["wait"])
    with replicas.lost_workers_named():
        stored = {key: run.about[key] for key in ("step", "seconds") if key in run.about}
        replicas.check_same(
            {"the text": text.fingerprint(), "the flags": run.flags, "the checkpoint": stored}
        )
        train_on(replicas, run, text, control, workers)


def train_on(replicas, run, text, control, workers):
    """The part of `train` with devices; all workers do it in step."""
    import device
    import model
    from optimizer import learning_rate
    from training import Trainer

    flags, splits = run.flags, text.splits()
    streams = replicas.streams(flags["batch"])
    sizes = flags["batch"], flags["window"], streams
    batches = corpus.Batches(text, *splits["train"], *sizes)
    config = model.stored_config(run.about) or model.config_of(flags)
    trainer = Trainer(config, flags, replicas)
    if run.arrays is not None:
        pending = run.arrays.pop("log/pending").tolist()
        trainer.restore(run.arrays, f"the checkpoint of step {run.step}")
    else:
        pending = []
    if workers.is_chief:
        print(describe(text, splits, config, trainer, batches, run, replicas), flush=True)
        if not control["no-pictures"]:
            draw_layouts(config, run.folder)

    begin, end = splits["validation"]
    validation = begin, min(end, begin + control["validation-bytes"])
    first = run.step
    tokens, num_steps = flags["batch"] * flags["window"], settings.num_steps(flags)
    bar = board = tracer = cluster.Silent()
    if workers.is_chief:
        bar = progress.Progress(num_steps, run.step, tokens)
        board = progress.Board(run.folder / "tensorboard")
        tracer = device.Tracer(run.folder / "profile", control["profile"])
    stop = Stop()
    seconds, started = run.about.get("seconds", 0.0), time.perf_counter()

    def save(step):
        paused = time.perf_counter()
        about = {"seconds": seconds + paused - started, "model": config.get_config()}
        if bar.speed():
            about["bytes_per_second"] = bar.speed()
        arrays = {**trainer.arrays(), "log/pending": [float(loss) for loss in pending]}
        run.save(step, arrays, about, control["keep"])
        bar.pause(time.perf_counter() - paused)

    def validate(step):
        paused = time.perf_counter()
        bpc = trainer.evaluate(corpus.evaluation_batches(text, *validation, *sizes))
        if step > first:  # else it is in the log
            run.log.write(step=step, tokens=step * tokens, validation_bpc=bpc)
            board.write(step, validation_bpc=bpc)
        bar.print(f"step {step}: validation {bpc:.3f} bits per character")
        bar.pause(time.perf_counter() - paused)
        return bpc

    result = loss = None
    for step in range(first, num_steps):
        rate = learning_rate(step, num_steps, flags)
        tracer.before(step - first, loss)
        loss, norm = trainer.step(step, *batches(step), rate)
        is_traced = tracer.after(step - first, loss)
        pending.append(loss)
        done = step + 1
        shown = None
        is_logged = done % control["log-every"] == 0 or done == num_steps
        if is_logged:
            losses = [float(loss) for loss in pending]
            pending.clear()
            bpc = sum(losses) / len(losses)
            if not bpc < float("inf"):
                raise errors.UserError(
                    f"the loss is {bpc} at step {done}: training has diverged. A smaller --rate or "
                    "--clip, or a longer --warmup may help"
                )
            elapsed = seconds + time.perf_counter() - started
            scalars = {"bpc": bpc, "rate": rate, "norm": float(norm)}
            run.log.write(step=done, tokens=done * tokens, seconds=round(elapsed, 3), **scalars)
            board.write(done, **scalars)
            shown = f"{bpc:.3f} bits per character"
        bar.update(done, shown)
        if is_traced:
            bar.restart()
        if done % control["validate-every"] == 0 or done == num_steps:
            result = validate(done)
        # Of several processes, a signal reaches one or all; they stop at the same step.
        is_stopped = (is_logged or workers.num_workers == 1) and replicas.any(stop.wanted)
        if done % control["save-every"] == 0 or done == num_steps or is_stopped:
            save(done)
        if is_stopped:
            raise errors.UserError(f"stopped after step {done}; the same command continues")
    tracer.close(loss)
    bar.close()
    board.flush()
    if result is None:  # there was nothing left to do
        result = validate(run.step)
    if workers.is_chief:
        if control["sample"]:
            prime = text.read(begin, min(PRIME, end - begin)).tobytes()
            print_sample(trainer.model, prime, control["sample"])
        summarize(run, text, validation, result, trainer, bar, control, replicas)
    replicas.any(False)  # until the chief is ready, as the others' end would look like a failure


def describe(text, splits, config, trainer, batches, run, replicas):
    """What will be trained on what, in some lines."""
    sizes = ", ".join(f"{name} {end - begin:,}" for name, (begin, end) in splits.items())
    densities = sorted({layout.density for layout in config.masks})
    percent = " to ".join(f"{100 * density:.3g}" for density in {densities[0], densities[-1]})
    step = f", from step {run.step} on" if run.step else ""
    share = f", on {replicas.count} replicas" if replicas.count > 1 else ""
    num_steps = settings.num_steps(run.flags)
    return (
        f"text      {text.name}: {len(text):,} bytes ({sizes})\n"
        f"model     {trainer.num_parameters:,} parameters: {config.nhidden} features, "
        f"{config.isteps} internal steps, {percent} % of blocks of {config.block_size}, "
        f"{config.dtype}\n"
        f"training  {num_steps} steps of {run.flags['batch']} x {run.flags['window']} "
        f"bytes, {num_steps / batches.steps_per_epoch:.2g} epochs{share}{step}"
    )


def summarize(run, text, validation, bpc, trainer, bar, control, replicas):
    """The table at the end, summary.json and the picture of the curve."""
    import device

    data = text.read(validation[0], validation[1] - validation[0]).tobytes()
    others = compressors.bits_per_character(data)
    speed, used = run.about.get("bytes_per_second"), device.report()
    print(f"\nbits per character on {len(data):,} validation bytes")
    print("  untrained  8.000")
    print(f"  model      {bpc:.3f}, trained on {validation[0]:,} other bytes of the text")
    for name, value in others.items():
        print(f"  {name:9s}  {value:.3f}, these bytes alone")
    if speed:
        print(f"speed      {speed:,.0f} bytes/s, graph building, validation and saving left out")
    if "peak_bytes" in used:
        print(
            f"memory     {used['peak_bytes'] / 2**30:.2f} GiB of the {used['device']} at the peak"
        )
    summary = {
        "validation_bpc": bpc,
        "validation_bytes": len(data),
        "compressors": others,
        "bytes_per_second": speed,
        "parameters": trainer.num_parameters,
        "replicas": replicas.count,
        "steps": settings.num_steps(run.flags),
        "text": run.about["text"],
        "flags": run.flags,
        **used,
    }
    run.write_summary(summary)
    if not control["no-pictures"]:
        import pictures

        pictures.draw_curve(runs.read_log(run.folder / runs.LOG), others, run.folder / "curve.png")
    print(f"results    {run.folder}: {', '.join(sorted(p.name for p in run.folder.glob('[!.]*')))}")


def print_sample(model, prime, length):
    """Text by the trained model."""
    from sample import sample

    text = sample(model, prime, length, TEMPERATURE).decode(errors="replace")
    print(
        f"\n{length} bytes by the model, at temperature {TEMPERATURE}, after the first "
        f"{len(prime)} of the validation text"
    )
    print(textwrap.indent(text, "  | ", lambda line: True))


def draw_layouts(config, folder):
    """Pictures of the layouts, where matplotlib is there."""
    try:
        import pictures

        pictures.draw_layouts(config, folder / "layouts")
    except ImportError as error:
        raise errors.UserError(f"{error}. --no-pictures does without") from error


class Stop:
    """`wanted` becomes True at Ctrl-C or SIGTERM, so that a step is ended and saved first."""

    def __init__(self):
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._want)

    def _want(self, *_):
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


if __name__ == "__main__":
    errors.run(main)
