"""Records, and all that is derived from them. Nothing in this room imports torch or a room beside it."""
