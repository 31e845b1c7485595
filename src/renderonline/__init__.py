"""RenderOnline: a self-hosted render farm."""

__version__ = "0.1.0"
