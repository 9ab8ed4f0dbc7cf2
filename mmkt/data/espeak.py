"""Speech out of espeak-ng, the same samples every time: each call speaks in a fresh process of its own.

Inside one process espeak's flutter carries over from word to word and nothing resets it, so a word would depend on all
that was said before; a fresh process starts from the same state. Breathy voices draw noise from a generator that
``espeak_Initialize`` seeds by the clock, so the child seeds it anew. Nothing that espeak prints, allocates or crashes on
reaches the caller. The child runs this very file and imports the standard library alone.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import numpy as np

RATE = 22_050  # Hz, what espeak-ng speaks at
_SYNCHRONOUS, _UTF8, _CHARACTER = 2, 1, 1  # from speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8, POS_CHARACTER
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "spread": 4, "punctuation": 5, "capitals": 6, "wordgap": 7}


class Utterance(NamedTuple):
    """What is said and how."""

    text: str
    voice: str  # an espeak voice and a variant: "en-us+f2"
    rate: int  # words a minute, 80 to 450
    pitch: int  # 0 to 100, 50 is the voice's own


def speak(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Speak one after the other, in order, while the caller works on what was said.

    Args:
        utterances: all of them; what one sounds like depends on those before it, and on nothing else.

    Returns:
        Waveforms (T,), float32 in [−1, 1], at ``RATE`` Hz.

    Raises:
        ValueError: the extra ``demo`` is missing, or espeak-ng does not have a voice.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise ValueError("synthetic speech needs the extra: pip install 'mmkt[demo]'") from None
    job = {
        "library": espeakng_loader.get_library_path(),
        "data": espeakng_loader.get_data_path(),
        "utterances": [utterance._asdict() for utterance in utterances],
    }
    return _listen(json.dumps(job).encode(), len(utterances))


def _listen(job: bytes, count: int) -> Iterator[np.ndarray]:
    import numpy as np

    with tempfile.TemporaryFile() as inbox, tempfile.TemporaryFile() as errors:
        inbox.write(job)
        inbox.seek(0)
        # -P: this file's folder stays off the path, where its neighbours would hide modules of the same name.
        command = [sys.executable, "-P", __file__]
        with subprocess.Popen(command, stdin=inbox, stdout=subprocess.PIPE, stderr=errors) as child:
            assert child.stdout is not None
            try:
                for _ in range(count):
                    header = child.stdout.read(4)
                    if len(header) < 4:
                        break
                    samples = np.frombuffer(child.stdout.read(struct.unpack("<I", header)[0]), "<i2")
                    yield samples.astype(np.float32) / 32768
            finally:
                child.stdout.close()  # a caller that stops early ends the child too
        errors.seek(0)
        if child.returncode:
            raise ValueError(f"espeak-ng stopped: {errors.read().decode(errors='replace').strip().splitlines()[-1]}")


# ---------------------------------------------------------------- the child


def _say_all(job: dict[str, Any], voice_out: BinaryIO) -> None:
    """Write each utterance as its length in bytes (uint32) and its samples (int16), little-endian."""
    import ctypes

    library = ctypes.CDLL(job["library"])
    if library.espeak_Initialize(_SYNCHRONOUS, 0, job["data"].encode(), 0) != RATE:
        sys.exit(f"it could not start with the voices in {job['data']}")
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed(1)  # by the clock otherwise
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def heard(samples: Any, count: int, events: Any) -> int:  # noqa: ARG001 - the C signature
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(heard)
    arguments: Any = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_uint] * 4, ctypes.c_void_p, ctypes.c_void_p]
    library.espeak_Synth.argtypes = arguments
    for one in job["utterances"]:
        if library.espeak_SetVoiceByName(one["voice"].encode()):
            sys.exit(f"it has no voice {one['voice']!r}; espeak-ng --voices=en lists what there is")
        settings = {"rate": one["rate"], "volume": 100, "pitch": one["pitch"], "spread": 50}
        for name, number in _PARAMETERS.items():  # all of them each time: setting a voice changes some
            library.espeak_SetParameter(number, settings.get(name, 0), 0)
        text = one["text"].encode()
        chunks.clear()
        if library.espeak_Synth(text, len(text) + 1, 0, _CHARACTER, 0, _UTF8, None, None) or library.espeak_Synchronize():
            sys.exit(f"it could not say {one['text']!r} as {one['voice']}")
        samples = b"".join(chunks)
        voice_out.write(struct.pack("<I", len(samples)) + samples)


def _main() -> None:
    import os

    voice_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever espeak prints goes where the parent reads errors, not among the samples
    try:
        _say_all(json.load(sys.stdin), voice_out)
        voice_out.flush()
    except BrokenPipeError:
        os._exit(0)  # the parent has heard enough


if __name__ == "__main__":
    _main()
