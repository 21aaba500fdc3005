"""Commands about rubrics: rubric show, check, new, hide and unhide. They send nothing and spend nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from alpasift.batcher.cli.options import dataset_option, json_option
from alpasift.batcher.cli.printing import note, number, plain, print_json


@click.group("rubric")
def rubric_command() -> None:
    """Look at a rubric, check your own, begin a new one, or hide a version. Sends nothing.

    \b
    Example:
      alpasift rubric new clarity.toml
      alpasift rubric check clarity.toml
      alpasift rubric show clarity.toml --row 0
    """


@rubric_command.command("show")
@click.argument("rubric", required=False, metavar="[RUBRIC]")
@click.option("--row", type=click.IntRange(0), metavar="N", help="Show the full prompt for this row, counted from 0.")
@dataset_option
@click.option(
    "--answer-format",
    type=click.Choice(["score", "explain", "json", "expected_score"]),
    help="With --row: the answer format. Default: the rubric's own.",
)
@json_option
@click.pass_obj
def show_command(
    db: str, rubric: str | None, row: int | None, dataset: str | None, answer_format: str | None, form: str | None
) -> None:
    """Show a rubric, or the prompt that a grader would be sent about one row. Without a name, list the built-in ones.

    \b
    Example:
      alpasift rubric show accuracy
      alpasift rubric show mine.toml --row 7 --dataset alpaca
    """
    from alpasift.batcher.grading.rendered import rendered_prompt
    from alpasift.batcher.store import Store
    from alpasift.graders.prompts.rubric import load_rubric, rubric_names

    if rubric is None:
        for name in rubric_names():
            click.echo(name)
        return
    found = load_rubric(rubric)
    if row is None:
        if form:
            print_json(found.content())
            return
        click.echo(f"{plain(found.name)}: {_scale(found)}, threshold {number(found.threshold)}")
        for title in ("system", "row", "question"):
            if text := getattr(found, title):
                click.echo(f"\n[{title}]\n{plain(text).strip()}")
        return
    prompt = rendered_prompt(Store(db).existing(), found, row, dataset=dataset, answer_format=answer_format)
    if form:
        print_json(asdict(prompt))
        return
    for role, text in prompt.messages:
        click.echo(f"[{role}]\n{plain(text).strip()}\n")
    choices = f", one of {', '.join(prompt.choices)}" if prompt.choices else ""
    note(
        f"{prompt.dataset} row {row}: answer format {prompt.answer_format}{choices}, at most {prompt.max_tokens} "
        "tokens; nothing was sent"
    )


@rubric_command.command("check")
@click.argument("file", type=click.Path(), metavar="FILE")
def check_command(file: str) -> None:
    """Check a rubric of your own: its keys, its scale and its fields.

    \b
    Example:
      alpasift rubric check clarity.toml
    """
    from alpasift.graders.prompts.rubric import load_rubric

    found = load_rubric(file)
    click.echo(f"{plain(found.name)}: {_scale(found)}, threshold {number(found.threshold)}")
    note(f"next: alpasift rubric show {plain(file)} --row 0")


@rubric_command.command("new")
@click.argument("file", type=click.Path(), metavar="FILE")
def new_command(file: str) -> None:
    """Create a rubric from a template. An existing file is not replaced.

    \b
    Example:
      alpasift rubric new clarity.toml
    """
    from alpasift.batcher.grading.rendered import write_new_rubric

    made = write_new_rubric(Path(file))
    note(f"{plain(file)}: the rubric {made.name}, {_scale(made)}; describe what its scores mean")
    note(f"next: alpasift rubric check {plain(file)}")


@rubric_command.command("hide")
@click.argument("rubrics", nargs=-1, required=True, metavar="NAME@VERSION...")
@click.pass_obj
def hide_command(db: str, rubrics: tuple[str, ...]) -> None:
    """Hide versions of a rubric from lists. Their grades stay, and `scores --all` and NAME@VERSION still show them.

    NAME alone is the newest version, NAME@1 the first.

    \b
    Example:
      alpasift rubric hide clarity@1 clarity@2
    """
    from alpasift.batcher.grading.hidden import set_hidden
    from alpasift.batcher.store import Store

    labels = set_hidden(Store(db), rubrics, True)
    note(f"hidden: {', '.join(map(plain, labels))}" if labels else "already hidden; nothing changed")
    if labels:
        note(f"to undo: alpasift rubric unhide {' '.join(map(plain, rubrics))}")


@rubric_command.command("unhide")
@click.argument("rubrics", nargs=-1, required=True, metavar="NAME@VERSION...")
@click.pass_obj
def unhide_command(db: str, rubrics: tuple[str, ...]) -> None:
    """List hidden versions of a rubric again.

    \b
    Example:
      alpasift rubric unhide clarity@1
    """
    from alpasift.batcher.grading.hidden import set_hidden
    from alpasift.batcher.store import Store

    labels = set_hidden(Store(db), rubrics, False)
    note(f"listed again: {', '.join(map(plain, labels))}" if labels else "not hidden; nothing changed")


def _scale(rubric: Any) -> str:
    return f"{number(rubric.low)} to {number(rubric.high)} in steps of {number(rubric.step)}"
