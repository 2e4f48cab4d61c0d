"""A pre-forked WebSocket server whose services live in processes of their own."""
