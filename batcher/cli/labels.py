"""The command that imports grades made elsewhere: labels."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from alpasift.batcher.cli.options import dataset_option, json_option
from alpasift.batcher.cli.printing import note, print_json

if TYPE_CHECKING:
    from alpasift.batcher.grading.labels import Labelled
    from alpasift.batcher.store import Store
    from alpasift.graders.prompts.rubric import Rubric


@click.command("labels")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--as", "name", required=True, metavar="NAME", help="The name of the grader: labels:NAME.")
@click.option("--field", metavar="KEY", help="Key of the label. Default: the only candidate.")
@click.option(
    "--index-field",
    metavar="KEY",
    help="Key of the row's position in its file, from 0. Default: `index`, if present.",
)
@dataset_option
@click.option("--rubric", metavar="R", help="Rubric whose scale the labels are on: accuracy, or your own .toml.")
@click.option("--binary", is_flag=True, help="The labels are 0 and 1, or false and true.")
@click.option("--scale", metavar="LOW:HIGH:STEP", help="Scale of the labels, for example 1:5:1; requires --threshold.")
@click.option("--threshold", metavar="X", help="With --scale: rows with at least this label are kept.")
@click.option("--kept", is_flag=True, help="FILE lists kept rows: they get 1, all other rows of the dataset 0.")
@json_option
@click.pass_obj
def labels_command(
    db: str,
    file: str,
    name: str,
    field: str | None,
    index_field: str | None,
    dataset: str | None,
    rubric: str | None,
    binary: bool,
    scale: str | None,
    threshold: str | None,
    kept: bool,
    form: str | None,
) -> None:
    """Import existing labels, human or published, as a grader. Costs nothing; the same file again adds
    nothing.

    A row of FILE (jsonl, a json list, csv) names the row of the dataset by its position or by its content.

    \b
    Example:
      alpasift labels people.jsonl --as people --rubric accuracy
      alpasift labels published.jsonl --as claude --field claude_ge_4_5 --binary
      alpasift labels kept.json --as published --kept
    """
    from alpasift.batcher.data.versions import resolve
    from alpasift.batcher.grading.labels import import_labels
    from alpasift.batcher.store import Store

    given = [option for option, on in (("--rubric", rubric), ("--binary", binary), ("--scale", scale)) if on]
    if kept and (field or given):
        raise click.UsageError(f"--kept sets the labels 1 and 0; remove {'--field' if field else given[0]} out")
    if len(given) != 1 and not kept:
        raise click.UsageError("give the scale of the labels: --rubric R, --binary, or --scale LOW:HIGH:STEP")
    if (scale is None) != (threshold is None):
        raise click.UsageError("--scale and --threshold must be given together: --scale 1:5:1 --threshold 4")
    store = Store(db).existing()
    version = resolve(store, dataset)
    found = import_labels(
        store,
        file,
        name,
        version,
        _label_rubric(store, name, rubric, scale, threshold),
        label_key=field,
        index_key=index_field,
        kept=kept,
    )
    if form:
        print_json(asdict(found))
    _print(found)
    note(f"next: alpasift scores --grader {found.grader}, or alpasift agree GRADER {found.grader}")


def _print(found: Labelled) -> None:
    if found.already_there:
        note(f"{found.grader}: already imported ({found.examples:,} examples); nothing was added")
    else:
        note(
            f"{found.grader}, rubric {found.rubric}: labels for {found.examples:,} distinct rows of {found.dataset}; "
            f"{found.without_label:,} have none"
        )
    if found.unmatched:
        note(
            f"  {found.unmatched:,} rows of the file match no row of {found.dataset}, the first: "
            f"{found.first_unmatched}"
        )
    if found.conflicting:
        note(f"  {found.conflicting:,} rows are skipped: equal rows have conflicting labels: {found.first_conflict}")
    if found.unlabelled:
        note(f"  {found.unlabelled:,} rows of the file have no label")


def _label_rubric(store: Store, name: str, rubric: str | None, scale: str | None, threshold: str | None) -> Rubric:
    from alpasift.batcher.grading.labels import own_rubric, rubric_called

    if rubric is not None:
        return rubric_called(store, rubric)
    if scale is None or threshold is None:
        return own_rubric(name)
    parts = scale.split(":")
    if len(parts) != 3:
        raise click.UsageError(f"--scale {scale!r}: write LOW:HIGH:STEP, 1:5:1")
    return own_rubric(name, parts[0], parts[1], parts[2], threshold)
