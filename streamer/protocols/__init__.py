"""Wire protocols: each turns its clients' messages into a session's options, and events into its messages."""
