"""gRPC's messages over HTTP/2: grpclib's protocol engine, with faster paths for common frames."""
