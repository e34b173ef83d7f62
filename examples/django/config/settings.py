"""Settings of the example. What matters for replicas is marked with REPLICAS; the rest is as Django makes it."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

# REPLICAS: one key for all nodes, else a session or a signed cookie of one node is worth nothing on another.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only-for-this-example")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    # REPLICAS: Django's admin and auth with random integer keys instead of 1, 2, 3 (see config/keys.py).
    "config.apps.AdminConfig",
    "config.apps.AuthConfig",
    "django.contrib.contenttypes",
    "django.contrib.sessions",  # its key is text: nothing to do
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "books",
]

# REPLICAS: for models without a key of their own, such as the tables behind a ManyToManyField.
DEFAULT_AUTO_FIELD = "config.keys.RandomAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DJANGO_DATABASE", BASE_DIR / "data" / "a" / "db.sqlite3"),
        "OPTIONS": {
            # REPLICAS: the agent is a second process that writes. A transaction takes the write lock at once and waits
            # for it; a deferred one, Django's default, fails with "database is locked" if the agent writes between its
            # first read and its first write.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
        },
    }
}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

ROOT_URLCONF = "config.urls"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
