"""The version, once: the build, the User-Agent and ``qamera_async.__version__`` read it here."""

__version__ = "0.1.0"
