"""The loop between a loader and a training step: decide, fetch, choose, hand out, learn."""
