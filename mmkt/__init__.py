"""mmkt: multimodal knowledge transfer."""

__version__ = "0.1.0"
