"""Commands that bring data in and out: import, export."""

from __future__ import annotations

from typing import Any

import click

from alpasift.batcher.cli.options import force_option, import_options, json_option, with_option
from alpasift.batcher.cli.printing import note, plain, print_json
from alpasift.batcher.cli.reports import print_added, print_import, print_preview, print_read_again


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--dataset", metavar="NAME", help="The dataset's name. Default: the file's name.")
@import_options
@click.option("--preview", is_flag=True, help="Preview the import and one row as the grader sees it; write nothing.")
@json_option
@click.pass_obj
def import_command(
    db: str, files: tuple[str, ...], dataset: str | None, reading: dict[str, Any], preview: bool, form: str | None
) -> None:
    """Import instruction data: alpaca, dolly, sharegpt, messages, prompts with completions, preference pairs and more.

    Reads .json, .jsonl, .csv, .tsv (also .gz, .zst), .parquet, folders as they lie on a hub, and those of save_to_disk.
    Several files with --dataset are one dataset. The same file again adds nothing; a changed file becomes NAME@2.

    \b
    Example:
      alpasift import --preview data.json
      alpasift import data.json --dataset alpaca
      alpasift import part-*.jsonl --dataset chats
      alpasift import qa.csv --map instruction=ask --map output=reply
    """
    from dataclasses import asdict

    from alpasift.batcher.data.import_files import import_files
    from alpasift.batcher.data.preview import preview_files
    from alpasift.batcher.store import Store

    if preview:
        previews = preview_files(files, dataset=dataset, **reading)
        if form:
            print_json([asdict(one) for one in previews])
            return
        for one in previews:
            print_preview(one)
        note("nothing was written; next: the same command without --preview")
        return
    done = []
    for found in import_files(Store(db), files, dataset=dataset, **reading):
        print_import(found)
        done.append(asdict(found))
    if form:
        print_json(done)
    else:
        note("next: alpasift plan")


@click.command("export")
@click.option("--selection", metavar="NAME", help="Write this selection.")
@click.option("--dataset", metavar="NAME", help="Write this dataset, every row.")
@click.option(
    "-o", "--output", required=True, type=click.Path(), metavar="FILE", help="Output file; its suffix sets the format."
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["json", "jsonl", "csv", "parquet"]),
    help="The file format, if the suffix does not set it.",
)
@click.option(
    "--row-format",
    type=click.Choice(["alpaca", "dolly", "sharegpt", "messages"]),
    help="Row format of the output. Default: that of the import.",
)
@with_option
@click.option("--grader", metavar="NAME", help="With --with: the grader. Default: the one the selection was made with.")
@click.option("--rubric", metavar="NAME", help="With --with: the rubric.")
@force_option
@click.pass_obj
def export_command(
    db: str,
    selection: str | None,
    dataset: str | None,
    output: str,
    format_name: str | None,
    row_format: str | None,
    figures: tuple[str, ...],
    grader: str | None,
    rubric: str | None,
    force: bool,
) -> None:
    """Write a selection or a dataset to a file, rows in their order with all their keys, and a manifest beside it.

    A file that alpasift did not write for this, and the file that a dataset was imported from, is replaced only with
    --force.

    \b
    Example:
      alpasift export --selection kept -o kept.json
      alpasift export --dataset alpaca -o graded.csv --with score,reason,explanation
    """
    from alpasift.batcher.grading.results import export
    from alpasift.batcher.store import Store

    if selection and dataset:
        raise click.UsageError("give --selection or --dataset, not both")
    store = Store(db).existing()
    print_read_again(store)
    made = export(
        store,
        output,
        selection=selection,
        dataset=dataset,
        format_name=format_name,
        row_format=row_format,
        figures=figures,
        grader=grader,
        rubric=rubric,
        force=force,
    )
    print_added(figures, made.added)
    note(
        f"{made.rows:,} rows of {made.label} written to {plain(made.path)}, and its manifest to {plain(made.manifest)}"
    )
