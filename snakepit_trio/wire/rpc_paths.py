"""The paths of this package's services, to which a method's name is appended."""

__all__ = ["BRIDGE", "WORKER"]

WORKER = "/snakepit.v1.WorkerService/"
BRIDGE = "/snakepit.v1.BridgeService/"
