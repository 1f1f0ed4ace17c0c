"""The live page and its server: `dinghai watch`. It reads runs and changes nothing."""

from dinghai.view.server.watch import serve

__all__ = ["serve"]
