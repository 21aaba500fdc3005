"""Datasets: files in, rows with ids, files out.

`importing` brings a file in, `versions` finds it again by its name, and `stored_rows` writes it out. They use `files`
(bytes to dicts), `row_formats` (dicts to content) and `identity` (content to example_id). `data_file` reads a file
without a database. `targets` checks, before any work, the files that a command will write.
"""
