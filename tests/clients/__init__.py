"""Stock gRPC clients, run as programs of their own: they read what to do from argv, and print what came of it as JSON."""
