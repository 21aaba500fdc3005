"""Commands that bring data in and out: import, export."""

from __future__ import annotations

from collections.abc import Sequence

import click

from batcher.cli.printing import note, plain, print_json


def _mapping(pairs: tuple[str, ...]) -> dict[str, str] | None:
    mapping = {}
    for pair in pairs:
        target, equals, source = pair.partition("=")
        if not equals or not target or not source:
            raise click.UsageError(f"--map {pair!r}: write instruction=question (our key = the file's key)")
        if target in mapping:
            raise click.UsageError(f"--map names {target!r} twice")
        mapping[target] = source
    return mapping or None


map_option = click.option(
    "--map", "mapping", multiple=True, metavar="OURS=THEIRS", callback=lambda _c, _p, v: _mapping(v),
    help="A key of the file that holds our key, instruction=question; repeatable.",
)  # fmt: skip
shape_option = click.option(
    "--shape", default="auto", show_default=True, type=click.Choice(["auto", "alpaca", "dolly", "sharegpt", "messages"])
)
strict_option = click.option("--strict", is_flag=True, help="Stop at the first bad row instead of setting it aside.")


def tell_import(found: object) -> None:
    """Say what an import did, on stderr."""
    from batcher.datasets import Imported

    assert isinstance(found, Imported)
    if found.already_there:
        note(f"{found.label}: this file is here already ({found.rows:,} rows); nothing was added")
        return
    note(f"{found.label}: {found.rows:,} rows from {found.format}, shape {found.shape}")
    if found.duplicates:
        note(f"  {found.duplicates:,} rows repeat an earlier row exactly; each content is graded once")
    for reason, count in sorted(found.reasons.items(), key=lambda pair: -pair[1]):
        note(f"  {count:,} rows set aside: {reason}")


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--dataset", metavar="NAME", help="The name to keep it under (the file's name if not given).")
@shape_option
@map_option
@strict_option
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.pass_obj
def import_command(
    db: str,
    files: tuple[str, ...],
    dataset: str | None,
    shape: str,
    mapping: dict[str, str] | None,
    strict: bool,
    form: str | None,
) -> None:
    """Bring instruction data into the database: alpaca, dolly, sharegpt or messages rows.

    Reads .json, .jsonl (also .gz, .zst), .csv, .parquet and folders of Hugging Face's save_to_disk. The same file
    again adds nothing; a changed file becomes NAME@2.

    \b
    Example:
      alpasift import data.json --dataset alpaca
      alpasift import qa.csv --map instruction=question --map output=answer
    """
    from dataclasses import asdict

    from batcher.datasets import import_file
    from batcher.store import Store

    store = Store(db).create()
    done = []
    for file in files:
        found = import_file(store, file, dataset=dataset, shape=shape, mapping=mapping, strict=strict)
        tell_import(found)
        done.append(asdict(found))
    if form:
        print_json(done)
    else:
        note("next: alpasift plan")


@click.command("export")
@click.option("--selection", metavar="NAME", help="Write this selection.")
@click.option("--dataset", metavar="NAME", help="Write this dataset, every row.")
@click.option(
    "-o", "--output", required=True, type=click.Path(), metavar="FILE", help="Where to; its suffix tells the format."
)
@click.option(
    "--format", "format_", type=click.Choice(["json", "jsonl", "csv", "parquet"]), help="If the suffix does not tell."
)
@click.option(
    "--shape", type=click.Choice(["alpaca", "dolly", "sharegpt", "messages"]), help="Another shape than the import's."
)
@click.pass_obj
def export_command(
    db: str, selection: str | None, dataset: str | None, output: str, format_: str | None, shape: str | None
) -> None:
    """Write a selection or a dataset to a file, rows in their order with all their keys.

    \b
    Example:
      alpasift export --selection kept -o kept.json
    """
    import json
    from pathlib import Path

    from batcher.datasets import export_rows, resolve
    from batcher.select import kept_positions, resolve_selection
    from batcher.store import Store

    if selection and dataset:
        raise click.UsageError("give --selection or --dataset, not both")
    check_targets(
        [output, *([f"{output}.manifest.json"] if selection else [])], not_onto=Store(db).files(), format_=format_
    )
    store = Store(db).existing()
    if selection:
        chosen = resolve_selection(store, selection)
        count = export_rows(
            store, chosen.version_id, kept_positions(store, chosen.selection_id), output, format=format_, shape=shape
        )
        manifest = Path(f"{output}.manifest.json")
        write_private(manifest, json.dumps(chosen.manifest, indent=2, ensure_ascii=False, default=str) + "\n")
        note(f"{count:,} rows of {chosen.label} written to {plain(output)}, how they were chosen to {plain(manifest)}")
    else:
        version = resolve(store, dataset)
        count = export_rows(store, version.version_id, None, output, format=format_, shape=shape)
        note(f"{count:,} rows of {version.label} written to {plain(output)}")


def check_targets(paths: list[str], *, not_onto: Sequence[object], format_: str | None = None) -> None:
    """Raise a usage error now for what could not be written later, or would replace what must stay.

    `paths` are the files a command will write, the first in a data format; `not_onto` what it reads or lives in.
    """
    import os
    from pathlib import Path

    from batcher.exports import writable_format
    from graders import AlpaSiftError

    taken = {Path(str(path)).resolve(): str(path) for path in not_onto}
    for path in paths:
        target = Path(path).resolve()
        if target in taken:
            raise click.UsageError(f"{path} would replace {taken[target]}; name another file")
        taken[target] = path
        if target.is_dir():
            raise click.UsageError(f"{path} is a folder; name a file")
        if target.exists() and not target.is_file():
            raise click.UsageError(f"{path} is no ordinary file; name one")
        if not target.parent.is_dir():
            raise click.UsageError(f"the folder {target.parent} does not exist; make it first")
        if not os.access(target.parent, os.W_OK):
            raise click.UsageError(f"the folder {target.parent} is read-only")
        try:
            if not path.endswith(".manifest.json"):
                writable_format(Path(path), format_)
        except AlpaSiftError as error:
            raise click.UsageError(str(error)) from error


def write_private(path: object, text: str) -> None:
    """Write a small file whole or not at all, readable by its owner only."""
    import os
    from pathlib import Path

    target = Path(str(path)).resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
