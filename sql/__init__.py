"""The database as text: migrations, views and named queries, read through importlib.resources."""
