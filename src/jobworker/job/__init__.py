"""Jobs: starting, stopping and asking about commands, without knowing of gRPC."""
