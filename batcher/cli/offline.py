"""Commands that check what a machine has: doctor, bundle create, bundle verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from alpasift.batcher.cli.options import json_option
from alpasift.batcher.cli.printing import note, plain, print_json, print_table


@click.command("doctor")
@click.option("--offline", is_flag=True, help="Check what is needed without a network, and how to get what is missing.")
@click.option(
    "--grader",
    "graders",
    multiple=True,
    metavar="SPEC",
    help="With --offline: a required grader, besides those of ALPASIFT_GRADERS. Repeatable.",
)
@click.option("--verify", is_flag=True, help="Recompute every id in the database from its content, and compare.")
@json_option
@click.pass_obj
def doctor_command(db: str, offline: bool, graders: tuple[str, ...], verify: bool, form: str | None) -> int:
    """Check what each grader needs and what is missing on this machine.

    Exits with code 1 when the database cannot be read; with --offline with code 3 when a grader that was named could
    not work without a network; with --verify with code 1 when an id is not that of its content.

    \b
    Example:
      alpasift doctor
      alpasift doctor --offline --grader llama_cpp:model.gguf
    """
    from alpasift.batcher.offline.doctor import doctor, offline_doctor
    from alpasift.graders.offline.guard import is_offline

    offline = offline or (is_offline() and not verify)
    if verify:
        if offline or graders:
            raise click.UsageError("--verify checks the database, --offline the machine; give one of them")
        return _verify(db, form)
    if graders and not offline:
        raise click.UsageError("--grader goes with --offline; `alpasift plan --grader SPEC` checks a grader here")
    found = offline_doctor(graders, db) if offline else None
    checks = doctor(db) if found is None else found.checks
    if form:
        print_json([check.as_row() for check in checks])
    else:
        print_table(["what", "ok", "message"], [[check.what, check.ok, check.message] for check in checks])
        for check in checks:
            if check.fix:
                note(f"{check.what}: {check.fix}")
    if found is not None and not found.named_ok:
        return 3
    return 1 if any(check.what == "database" and not check.ok for check in checks) else 0


def _verify(db: str, form: str | None) -> int:
    from alpasift.batcher.engine.identities import verify_ids
    from alpasift.batcher.store import Store

    found = verify_ids(Store(db).existing())
    if form:
        print_json([asdict(one) for one in found])
    else:
        columns = ["ids of", "compared", "different", "of another version", "first that differs"]
        print_table(columns, [[o.kind, o.compared, o.different, o.skipped, o.first or ""] for o in found])
    different = sum(one.different for one in found)
    if different:
        note(f"{different:,} ids do not match their content: rows of {db} were changed after they were written")
    return 1 if different else 0


@click.group("bundle")
def bundle_command() -> None:
    """Pack everything that an air-gapped machine needs, and verify it there.

    \b
    Example:
      alpasift bundle create to_carry --wheels --model model.gguf
      alpasift bundle verify to_carry
    """


@bundle_command.command("create")
@click.argument("folder", type=click.Path(file_okay=False), metavar="DIR")
@click.option("--wheels", is_flag=True, help="Include the packages: runs pip, which needs a network.")
@click.option(
    "--extra",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Packages of an extra (llama, vllm, ...) as installed here. Repeatable. --model adds those it needs.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="A GGUF file (all its parts) or a model folder to include. Repeatable.",
)
@click.option("--link", is_flag=True, help="Do not copy the models, only record the hashes of their files.")
@click.option(
    "--rubric",
    "rubrics",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Your own rubric to include. Repeatable.",
)
@click.option(
    "--prices", type=click.Path(), metavar="FILE", help="Your prices.toml. Default: the one in the current folder."
)
@click.option("--db", "database", type=click.Path(), metavar="FILE", help="A database to include.")
@json_option
def create_command(
    folder: str,
    wheels: bool,
    extras: tuple[str, ...],
    models: tuple[str, ...],
    link: bool,
    rubrics: tuple[str, ...],
    prices: str | None,
    database: str | None,
    form: str | None,
) -> None:
    """Write a bundle: requirements, wheels, models, rubrics, prices, and a manifest with every hash.

    \b
    Example:
      alpasift bundle create to_carry --wheels --model model.gguf
      alpasift bundle create to_carry --model models/llama --link --db alpasift.duckdb
    """
    from dataclasses import asdict

    from alpasift.batcher.offline.bundle import Contents, create

    contents = Contents(
        models=[Path(model) for model in models],
        link=link,
        extras=extras,
        wheels=wheels,
        rubrics=[Path(rubric) for rubric in rubrics],
        prices=Path(prices) if prices else None,
        database=Path(database) if database else None,
    )
    created = create(Path(folder), contents, report=note)
    if form:
        print_json({**asdict(created), "folder": str(created.folder)})
    else:
        click.echo(plain(created.folder))
        for line in created.notes:
            note(line)
    note(f"{created.files:,} files, {_size(created.bytes)}; sha256 of the manifest: {created.manifest_sha256}")
    if wheels:
        note("next, there: pip install --no-index --find-links DIR/wheels --require-hashes -r DIR/requirements.txt")
    note(f"{'then' if wheels else 'next, there'}: alpasift bundle verify DIR --sha256 {created.manifest_sha256}")


@bundle_command.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.option("--sha256", metavar="HEX", help="The manifest's sha256 as printed by `create`, from a separate channel.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(),
    metavar="PATH",
    help="Path of a model that was added with --link. Repeatable.",
)
@json_option
def verify_command(folder: str, sha256: str | None, models: tuple[str, ...], form: str | None) -> int:
    """Check every file of a bundle, and what is installed here, against its manifest. Exits with code 1 on problems.

    \b
    Example:
      alpasift bundle verify to_carry
      alpasift bundle verify to_carry --model /models/llama --json
    """
    from dataclasses import asdict

    from alpasift.batcher.offline.verify import verify

    found = verify(Path(folder), models=[Path(model) for model in models], manifest_sha256=sha256)
    if form:
        print_json({"ok": not found.problems, **asdict(found)})
        return 1 if found.problems else 0
    for line in found.problems:
        click.echo(plain(line))
    for line in found.notes:
        note(line)
    count = len(found.problems)
    result = f"{count:,} problem{'' if count == 1 else 's'}" if count else "all files verified"
    note(f"{found.files:,} files, {_size(found.bytes)}: {result}")
    if found.damaged:
        note("copy the bundle again; install nothing and load no model from a folder whose files have changed")
        return 1
    if found.install:
        note("to install from it:")
        click.echo(plain(found.install))
    if found.problems:
        note("the files are intact; what is listed above differs on this machine")
        return 1
    for grader in found.graders:
        note(f"next: alpasift --offline grade --grader {plain(grader)}")
    return 0


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
