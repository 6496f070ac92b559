"""gRPC's messages over HTTP/2: grpclib's protocol engine, with shorter ways for what is common."""
