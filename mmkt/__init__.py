"""mmkt: multimodal knowledge transfer.

``mmkt.load(path).predict([...])`` answers with a checkpoint; ``mmkt.launch.train(mmkt.read(mmkt.Experiment, file))`` and
``mmkt.evaluate.evaluate(path)`` are the commands of the same names; ``mmkt.fit`` is the loop alone.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {
    "Model": "mmkt.model",
    "Learner": "mmkt.learner",
    "Feed": "mmkt.feed",
    "fit": "mmkt.train",
    "predict": "mmkt.predictions",
    "read": "mmkt.config",
    "Experiment": "mmkt.experiment",
}
__all__ = ["load", *_PUBLIC]


def load(path: Any, plugins: Any = ()) -> Any:
    """A checkpoint's model: ``Model.from_pretrained``."""
    return import_module("mmkt.model").Model.from_pretrained(path, plugins)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import mmkt`` (and ``mmkt --help``) is quick."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mmkt' has no attribute {name!r}")
