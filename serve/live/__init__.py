"""Live captions: sessions apart from what carries them, and the WebSocket that carries them."""
