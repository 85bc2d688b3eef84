"""The gRPC border: requests to domain calls, domain errors to statuses. It decides nothing."""
