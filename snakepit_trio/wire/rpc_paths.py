"""The paths of the RPCs of our services: the service's, followed by the method's name."""

__all__ = ["BRIDGE", "WORKER"]

WORKER = "/snakepit.v1.WorkerService/"
BRIDGE = "/snakepit.v1.BridgeService/"
