"""How far training is: a bar (tqdm, where it is installed) or lines, and TensorBoard's scalars."""

import sys
import time

LINE_SECONDS = 10  # from one line to the next, without tqdm or a terminal


class Progress:
    """Shows steps, bits per character, bytes per second and the time left.

    Args:
      total: steps of the run.
      done: steps done before.
      tokens: bytes of a step.
    """

    def __init__(self, total, done, tokens):
        self._total, self._done, self._tokens = total, done, tokens
        self._begin = self._now = (
            None  # of what is timed: after the first step, which builds graphs
        )
        self._first = done
        self._last_line = 0.0
        self._text = ""
        self._bar = _bar(total, done)

    def update(self, done, text=None):
        """So many steps are done; `text` is shown until there is another."""
        now = self._now = time.perf_counter()
        self._done = done
        if self._begin is None:
            self.restart()
        self._text = text or self._text
        parts = [self._text, f"{self.speed():,.0f} bytes/s" if self.speed() else ""]
        shown = ", ".join(filter(None, parts))
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._last_line >= LINE_SECONDS or done == self._total:
            self._last_line = now
            left = (self._total - done) * self._tokens
            shown += f", {left / self.speed():.0f} s left" if self.speed() and left else ""
            self.print(f"step {done}/{self._total}{': ' if shown else ''}{shown}")

    def speed(self):
        """Bytes per second without the first step and pauses, or None until there are two steps."""
        steps = self._done - self._first
        return steps * self._tokens / (self._now - self._begin) if steps else None

    def restart(self):
        """Leaves out of the speed what has been so far."""
        self._begin, self._first = time.perf_counter(), self._done

    def pause(self, seconds):
        """Leaves out time that was not training."""
        if self._begin is not None:
            self._begin += seconds
            self._now += seconds

    def print(self, line):
        """Prints a line above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self):
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(total, done):
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1)


class Board:
    """Scalars for TensorBoard, which need nothing but TensorFlow to be written."""

    def __init__(self, folder):
        import tensorflow as tf

        self._tf = tf
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "scalars"
        self._metadata = metadata
        self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, step, **values):
        """Adds points to curves."""
        with self._writer.as_default():
            for name, value in values.items():
                value = self._tf.constant(value, self._tf.float32)
                self._tf.summary.write(name, value, step=step, metadata=self._metadata)

    def flush(self):
        """Returns when all is written."""
        self._writer.flush()
