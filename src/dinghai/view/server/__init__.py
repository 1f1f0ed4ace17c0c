"""The live page and its server: `dinghai watch`. It reads runs and changes nothing."""

from dinghai.view.server.serve import serve

__all__ = ["serve"]
