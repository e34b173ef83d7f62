"""Books and their authors. The keys are UUIDs: any node may create a row at any time."""

from __future__ import annotations

import uuid

from django.db import models


class Author(models.Model):
    """Somebody who writes."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.name


class Book(models.Model):
    """What they wrote."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    title = models.CharField(max_length=200)
    year = models.IntegerField(null=True, blank=True)
    authors = models.ManyToManyField(Author, blank=True)

    def __str__(self) -> str:
        return self.title
