"""Books and authors in the admin."""

from __future__ import annotations

from django.contrib import admin

from books.models import Author, Book

admin.site.register([Author, Book])
