"""Places where snapshots lie: one small interface (`base`), and a directory, S3, fsspec and NATS behind it."""
