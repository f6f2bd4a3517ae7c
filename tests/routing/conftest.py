from helpers import device

__all__ = ["device"]
