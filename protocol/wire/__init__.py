"""Messages and how they become bytes: messages.py, codec.py, framing.py, session.py. No I/O."""
