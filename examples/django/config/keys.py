"""Integer keys that several nodes can choose without asking each other."""

from __future__ import annotations

import secrets

from django.db import models

KEY_BITS = 53
"""What JavaScript can still count; SQLite takes 63."""


class RandomAutoField(models.AutoField):
    """An AutoField whose value is chosen here, at random, instead of by SQLite, which would count 1, 2, 3 on each node.

    To migrations it is a plain AutoField: the column is the same, so nothing has to be migrated and it can be put under
    Django's own models.
    """

    def get_pk_value_on_save(self, instance: models.Model) -> int:
        """The key of an object that has none yet."""
        return secrets.randbelow(2**KEY_BITS - 1) + 1

    def deconstruct(self) -> tuple[str, str, list[object], dict[str, object]]:
        """What a migration writes."""
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.AutoField", arguments, options
