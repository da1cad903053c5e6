"""The overlay's decisions: pure machines under one seam, `OverlayNode.handle(event, now) -> list[Effect]`."""
