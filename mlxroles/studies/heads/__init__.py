"""What each head of a model does: detectors on its attention, and what zeroing the heads costs."""
