"""Audio in, text out: files, microphone, terminal, websocket."""
