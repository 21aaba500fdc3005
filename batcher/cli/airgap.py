"""Commands for a machine without a network: bundle create, bundle verify."""

from __future__ import annotations

from pathlib import Path

import click

from batcher.cli.printing import note, plain, print_json


@click.group("bundle")
def bundle_command() -> None:
    """What an air-gapped machine needs: pack it here, check it there.

    \b
    Example:
      alpasift bundle create to_carry --wheels --model model.gguf
      alpasift bundle verify to_carry
    """


@bundle_command.command("create")
@click.argument("folder", type=click.Path(file_okay=False), metavar="DIR")
@click.option("--wheels", is_flag=True, help="Carry the packages too: runs pip, which needs a network.")
@click.option(
    "--extra", "extras", multiple=True, metavar="NAME",
    help="Packages of an extra (llama, vllm, ...) as installed here; repeatable. A model brings its own.",
)  # fmt: skip
@click.option(
    "--model", "models", multiple=True, type=click.Path(), metavar="PATH",
    help="A GGUF file (all its parts) or a model folder to carry; repeatable.",
)  # fmt: skip
@click.option("--link", is_flag=True, help="Do not copy the models, only write down what their files must be.")
@click.option(
    "--rubric", "rubrics", multiple=True, type=click.Path(), metavar="FILE", help="A rubric of your own; repeatable."
)
@click.option("--prices", type=click.Path(), metavar="FILE", help="Your prices.toml, where it is not found by itself.")
@click.option("--db", "database", type=click.Path(), metavar="FILE", help="Carry this database too.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
def create_command(
    folder: str, wheels: bool, extras: tuple[str, ...], models: tuple[str, ...], link: bool, rubrics: tuple[str, ...],
    prices: str | None, database: str | None, form: str | None,
) -> None:  # fmt: skip
    """Write a folder to carry: requirements, wheels, models, rubrics, prices, and a manifest with every hash.

    \b
    Example:
      alpasift bundle create to_carry --wheels --model model.gguf
      alpasift bundle create to_carry --model models/llama --link --db alpasift.duckdb
    """
    from batcher.bundle import create

    made = create(
        Path(folder),
        models=[Path(model) for model in models],
        link=link,
        extras=extras,
        wheels=wheels,
        rubrics=[Path(rubric) for rubric in rubrics],
        prices=Path(prices) if prices else None,
        database=Path(database) if database else None,
        say=note,
    )
    if form:
        print_json({
            "folder": str(made.folder), "files": made.files, "bytes": made.bytes, "extras": made.extras,
            "manifest_sha256": made.manifest_sha256, "notes": made.notes,
        })  # fmt: skip
    else:
        click.echo(plain(made.folder))
        for line in made.notes:
            note(line)
    note(f"{made.files:,} files, {_size(made.bytes)}; sha256 of the manifest: {made.manifest_sha256}")
    if wheels:
        note("next, there: pip install --no-index --find-links DIR/wheels --require-hashes -r DIR/requirements.txt")
    note(f"{'then' if wheels else 'next, there'}: alpasift bundle verify DIR --sha256 {made.manifest_sha256}")


@bundle_command.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.option("--sha256", metavar="HEX", help="What create told of the manifest, carried by another way.")
@click.option(
    "--model", "models", multiple=True, type=click.Path(), metavar="PATH",
    help="Where a model lies that was described with --link; repeatable.",
)  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Print JSON.")
def verify_command(folder: str, sha256: str | None, models: tuple[str, ...], form: str | None) -> int:
    """Check every file of a bundle, and what is installed here against it. One line for each problem; then code 1.

    \b
    Example:
      alpasift bundle verify to_carry
      alpasift bundle verify to_carry --model /models/llama --json
    """
    from dataclasses import asdict

    from batcher.bundle import verify

    found = verify(Path(folder), models=[Path(model) for model in models], manifest_sha256=sha256)
    if form:
        print_json({"ok": not found.problems, **asdict(found)})
        return 1 if found.problems else 0
    for line in found.problems:
        click.echo(plain(line))
    for line in found.notes:
        note(line)
    said = f"{len(found.problems)} problems" if found.problems else "all as it was written"
    note(f"{found.files:,} files, {_size(found.bytes)}: {said}")
    if found.problems:
        note("bring what is wrong again; install nothing from a folder whose files are not those that were written")
    if found.install:
        note("to install from it:")
        click.echo(plain(found.install))
    for grader in found.graders:
        note(f"next: alpasift --offline grade --grader {plain(grader)}")
    return 1 if found.problems else 0


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
