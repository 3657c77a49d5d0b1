"""A computation as data: plans are captured, read, checked and run here."""
