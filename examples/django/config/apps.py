"""Django's own apps with keys that do not collide between nodes: users, groups, permissions and the admin's log."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig as DjangoAdminConfig
from django.contrib.auth.apps import AuthConfig as DjangoAuthConfig

RANDOM_KEYS = "config.keys.RandomAutoField"


class AdminConfig(DjangoAdminConfig):
    """The admin."""

    default_auto_field = RANDOM_KEYS


class AuthConfig(DjangoAuthConfig):
    """Users, groups and permissions, and the tables between them."""

    default_auto_field = RANDOM_KEYS
