"""One update: its attempts, idempotency keys, per-account lock, and the tracking of open calls."""
