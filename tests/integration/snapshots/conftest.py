"""The S3 service of the stores' tests, for tests of whole backups."""

from integration.stores.conftest import s3, s3_identity, seaweed

__all__ = ["s3", "s3_identity", "seaweed"]
