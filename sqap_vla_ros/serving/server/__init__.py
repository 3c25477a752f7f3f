"""The policy served to others: one websocket server for the clients of vla-eval and openpi, and for `RemotePolicy`."""
