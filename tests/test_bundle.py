"""A bundle: what was packed is what is found, and whatever was changed on the way is named."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpasift.batcher.offline.bundle import Contents, create
from alpasift.batcher.offline.manifest import BundleError, read_manifest, vocabulary_hashes
from alpasift.batcher.offline.verify import verify
from alpasift.batcher.offline.wheels import closure, misfit
from alpasift.graders.prompts.rubric import load_rubric
from conftest import EXAMPLES, Ran, call_cli

Call = Callable[..., Ran]
RUBRIC = """
name = "brevity"
low = 1
high = 5
step = 1
threshold = 4
system = "Grade brevity from {{low}} to {{high}}."
question = "The grade:"
"""
PRICES = """
[[price]]
provider = "models.example.org"
model = "own"
input = "1"
output = "2"
source = "a letter"
date = 2026-10-01
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a bit of everything but wheels: never changed by a test, which copies it."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "tiny.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(3_000_000))
    (folder / "brevity.toml").write_text(RUBRIC)
    (folder / "mine.toml").write_text(PRICES)
    assert call_cli(["import", EXAMPLES], cwd=folder).code == 0
    ran = call_cli(
        [
            "bundle",
            "create",
            "b",
            "--model",
            "tiny.gguf",
            "--rubric",
            "brevity.toml",
            "--prices",
            "mine.toml",
            "--db",
            "alpasift.duckdb",
        ],
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    return folder / "b"


@pytest.fixture
def bundle(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "b")
    return tmp_path / "b"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def change(bundle: Path, **fields: Any) -> None:
    """Change the manifest as somebody might on the way."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, **fields}))


# -- create -------------------------------------------------------------------------------------------------------


def test_a_bundle_holds_what_was_named_and_a_manifest_with_every_size_and_hash(packed: Path) -> None:
    expected = {
        "manifest.json",
        "requirements.txt",
        "models/tiny.gguf",
        "rubrics/brevity.toml",
        "prices.toml",
        "alpasift.duckdb",
    }
    assert files_in(packed) == expected
    manifest = json.loads((packed / "manifest.json").read_text())
    assert {entry["path"] for entry in manifest["files"]} == expected - {"manifest.json"}
    for entry in manifest["files"]:
        data = (packed / entry["path"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert manifest["platform"] == sysconfig.get_platform()
    assert re.fullmatch(r"\d{3}_\w+", manifest["schema"])
    assert manifest["rubrics"]["accuracy"] == load_rubric("accuracy").digest()
    assert set(manifest["vocabularies"]) == {"o200k_base", "cl100k_base"}
    assert manifest["requirements"]["alpasift"]


def test_the_database_in_it_is_for_its_owner_the_rest_as_the_umask_says_and_nothing_else_is_left(packed: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    for path in [packed, *packed.rglob("*")]:
        open_to = 0o777 if path.is_dir() else 0o600 if "duckdb" in path.name else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == open_to & ~umask, path
    assert [path.name for path in packed.parent.iterdir() if path.name.startswith(".")] == []


def test_create_prints_the_size_and_the_hash_of_the_manifest(alpasift: Call, tmp_path: Path) -> None:
    ran = alpasift("bundle", "create", "b", "--json")
    assert ran.code == 0, ran.err
    digest = hashlib.sha256((tmp_path / "b" / "manifest.json").read_bytes()).hexdigest()
    size = sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert (ran.json["manifest_sha256"], ran.json["bytes"], ran.json["files"]) == (digest, size, 2)
    assert f"alpasift bundle verify DIR --sha256 {digest}" in ran.err


def test_the_requirements_are_all_that_alpasift_needs_at_the_versions_that_are_installed(packed: Path) -> None:
    lines = (packed / "requirements.txt").read_text().splitlines()[1:]
    listed = dict(line.split("==") for line in lines)
    assert listed == read_manifest(packed).requirements
    assert {"click", "duckdb", "openai", "splintr-rs", "pydantic-core", "typing-extensions"} <= set(listed)
    assert not {"pytest", "ruff", "mypy", "hatchling", "pip"} & set(listed)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude", "alpasift"], capture_output=True, text=True
    )
    frozen = {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in re.findall(r"^(\S+)==(\S+)$", done.stdout, re.M)}
    assert {n: v for n, v in listed.items() if n != "alpasift"}.items() <= frozen.items()


def test_an_extra_that_is_not_installed_is_refused_and_a_models_own_is_added(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the extra ray is not installed here \(ray missing\)"):
        create(tmp_path / "b", Contents(extras=["ray"]))
    with pytest.raises(BundleError, match="alpasift has no extra 'lama'; choose from"):
        create(tmp_path / "b", Contents(extras=["lama"]))
    assert not (tmp_path / "b").exists()
    pytest.importorskip("llama_cpp")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    made = create(tmp_path / "b", Contents(models=[tmp_path / "m.gguf"]))
    assert made.extras == ("llama",)
    assert read_manifest(tmp_path / "b").requirements.items() >= closure(["llama"]).items() > closure([]).items()


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (lambda d: (d / "b").mkdir() or (d / "b" / "thesis.txt").write_text("x"), [], "is not empty and not a bundle"),
        (lambda d: (d / "b").write_text("x"), [], "is a file"),
        (lambda d: None, ["--model", "none.gguf"], "file not found: none.gguf"),
        (lambda d: (d / "m.gguf").write_text("x"), ["--model", "m.gguf"], "m.gguf is not a GGUF file"),
        (lambda d: (d / "m").mkdir(), ["--model", "m"], "m is incomplete: missing config.json, a tokenizer"),
        (lambda d: None, ["--rubric", "none.toml"], "the rubric none.toml cannot be read"),
        (lambda d: (d / "p.toml").write_text("[[price]]"), ["--prices", "p.toml"], "p.toml: price 1"),
        (lambda d: None, ["--db", "none.duckdb"], "no database none.duckdb"),
        (lambda d: (d / "x.duckdb").write_text("no database at all"), ["--db", "x.duckdb"], "is not a DuckDB database"),
    ],
)
def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(
    alpasift: Call, tmp_path: Path, prepare: Callable[[Path], Any], arguments: list[str], said: str
) -> None:
    prepare(tmp_path)
    before = files_in(tmp_path)
    ran = alpasift("bundle", "create", "b", *arguments)
    assert ran.code in (1, 2), ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert files_in(tmp_path) == before


def test_a_bundle_is_replaced_by_the_next_but_not_what_somebody_put_beside_it(bundle: Path) -> None:
    create(bundle, Contents())
    assert files_in(bundle) == {"manifest.json", "requirements.txt"}
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"contains notes\.txt, which is not part of the bundle"):
        create(bundle, Contents())
    assert (bundle / "notes.txt").read_text() == "mine"


def test_a_model_folder_is_copied_through_links_and_without_what_is_hidden(tmp_path: Path) -> None:
    blobs, model = tmp_path / "blobs", tmp_path / "llama"
    for folder in (blobs, model, model / ".cache", model / "extra"):
        folder.mkdir()
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (blobs / "1").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0\0\0")
    (model / "model.safetensors").symlink_to(blobs / "1")
    for name in ("config.json", "tokenizer.json", ".cache/x", "extra/y.json"):
        (model / name).write_text("{}")
    create(tmp_path / "b", Contents(models=[model]))
    names = {"config.json", "tokenizer.json", "model.safetensors", "extra/y.json"}
    assert {path for path in files_in(tmp_path / "b") if path.startswith("models/")} == {
        f"models/llama/{n}" for n in names
    }
    assert not (tmp_path / "b" / "models" / "llama" / "model.safetensors").is_symlink()
    found = verify(tmp_path / "b")
    assert found.problems == []
    assert found.graders == [f"vllm:{tmp_path / 'b' / 'models' / 'llama'}"]


def test_a_linked_model_is_checked_where_it_lies_by_name(alpasift: Call, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16) + bytes([number]))
    first = "m-00001-of-00002.gguf"
    create(tmp_path / "b", Contents(models=[tmp_path / first], link=True))
    assert files_in(tmp_path / "b") == {"manifest.json", "requirements.txt"}
    unchecked = verify(tmp_path / "b")
    assert unchecked.problems == []
    assert any(line.startswith(f"the model {first} is not included") for line in unchecked.notes)
    far = tmp_path / "far"
    far.mkdir()
    for path in tmp_path.glob("*.gguf"):
        shutil.copy(path, far)
    assert verify(tmp_path / "b", models=[far / first]).problems == []
    (far / "m-00002-of-00002.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16) + b"\3")
    ran = alpasift("bundle", "verify", "b", "--model", f"far/{first}")
    assert (ran.code, ran.out) == (
        1,
        "far/m-00002-of-00002.gguf: its content has changed (sha256 differs)\n",
    )
    assert verify(tmp_path / "b", models=[tmp_path / "o.gguf"]).problems == [
        f"{tmp_path / 'o.gguf'}: the manifest has no model of that name"
    ]


# -- verify -------------------------------------------------------------------------------------------------------


def test_a_bundle_that_came_over_whole_has_no_problem(alpasift: Call, bundle: Path) -> None:
    ran = alpasift("bundle", "verify", "b", "--json")
    assert ran.code == 0, ran.out
    assert (ran.json["ok"], ran.json["problems"], ran.json["files"], ran.json["install"]) == (True, [], 6, None)
    printed = alpasift("bundle", "verify", "b", "--sha256", ran.json["manifest_sha256"])
    assert (printed.code, printed.out) == (0, "")
    assert "all files verified" in printed.err
    assert "alpasift --offline grade --grader llama_cpp:b/models/tiny.gguf" in printed.err


def test_each_thing_that_changed_on_the_way_is_one_line(alpasift: Call, bundle: Path) -> None:
    model = bundle / "models" / "tiny.gguf"
    was = model.stat()
    with model.open("r+b") as file:  # one bit, at the same size and with the same date
        file.seek(2_000_000)
        file.write(b"\1")
    os.utime(model, ns=(was.st_atime_ns, was.st_mtime_ns))
    (bundle / "prices.toml").write_text("")
    (bundle / "rubrics" / "brevity.toml").unlink()
    (bundle / "wheels").mkdir()
    (bundle / "wheels" / "evil-1.0-py3-none-any.whl").write_bytes(b"x")
    (bundle / "link").symlink_to("/etc/hostname")
    os.mkfifo(bundle / "pipe")
    ran = alpasift("bundle", "verify", "b")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "link: a link; a bundle may contain files only",
        "pipe: neither a file nor a folder; a bundle may contain files only",
        "models/tiny.gguf: its content has changed (sha256 differs)",
        f"prices.toml: it has 0 bytes, expected {len(PRICES)}",
        "rubrics/brevity.toml: missing",
        "wheels/evil-1.0-py3-none-any.whl: not in the manifest",
    ]
    assert "6 problems" in ran.err and "copy the bundle again" in ran.err
    assert "next:" not in ran.err and "pip install" not in ran.out + ran.err
    found = verify(bundle)
    assert found.damaged and found.graders == [] and found.install is None


def test_a_file_replaced_by_a_link_is_not_opened(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "same.gguf"
    (bundle / "models" / "tiny.gguf").rename(outside)
    (bundle / "models" / "tiny.gguf").symlink_to(outside)
    assert verify(bundle).problems == ["models/tiny.gguf: a link; a bundle may contain files only"]
    (bundle / "models" / "tiny.gguf").unlink()
    (bundle / "models").rmdir()
    (tmp_path / "elsewhere").mkdir()
    outside.rename(tmp_path / "elsewhere" / "tiny.gguf")
    (bundle / "models").symlink_to(tmp_path / "elsewhere")
    assert verify(bundle).problems == ["models: a link; a bundle may contain files only", "models/tiny.gguf: missing"]


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a/./b",
        "a//b",
        "",
        ".",
        "..",
        "C:/x",
        "a\\..\\x",
        "x\n",
        "\x1b[2J",
        "manifest.json",
    ],
)
def test_a_path_that_leaves_the_folder_or_is_not_one_is_refused(alpasift: Call, bundle: Path, path: str) -> None:
    if path != "../x":  # the others by the function, which is quicker
        change(bundle, files=[{"path": path, "bytes": 1, "sha256": "0" * 64}])
        with pytest.raises(BundleError):
            verify(bundle)
        return
    change(bundle, files=[{"path": path, "bytes": 1, "sha256": "0" * 64}])
    ran = alpasift("bundle", "verify", "b")
    assert (ran.code, ran.out) == (1, "")
    assert "'../x' is not a path inside a bundle; do not trust this folder" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '{"alpasift_bundle": 2}',
        '{"alpasift_bundle": 1}',
        '{"alpasift_bundle": 1, "created": 7}',
    ],
)
def test_what_is_not_a_manifest_is_one_error(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify(bundle)


@pytest.mark.parametrize(
    "fields",
    [
        {"files": [{"path": "x", "bytes": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "bytes": True, "sha256": "0" * 64}]},
        {"files": [{"path": "x", "bytes": 1, "sha256": "zz"}]},
        {"files": [{"path": "x", "bytes": 1, "sha256": "0" * 64}] * 2},
        {"files": 7},
        {"requirements": []},
        {"requirements": {"a": 1}},
        {"linked": [{}]},
        {"prices_dated": "soon"},
        {"platform": "\x1b[31m"},
    ],
)
def test_a_manifest_with_odd_fields_is_refused(bundle: Path, fields: dict[str, Any]) -> None:
    change(bundle, **fields)
    with pytest.raises(BundleError, match="is malformed"):
        verify(bundle)


def test_a_manifest_that_is_not_the_one_that_was_made_is_recognised_by_its_hash(alpasift: Call, bundle: Path) -> None:
    change(bundle, files=[])
    ran = alpasift("bundle", "verify", "b", "--sha256", "0" * 64)
    assert ran.code == 1
    assert "this is not the bundle that was created" in ran.err
    (bundle / "manifest.json").unlink()
    assert "is not a bundle: it has no manifest.json" in alpasift("bundle", "verify", "b").err


def test_other_versions_schema_rubrics_and_vocabularies_here_are_problems(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(
        bundle,
        schema="999_future",
        requirements={**manifest["requirements"], "click": "0.1", "not-there": "1.0"},
        rubrics={"accuracy": "0" * 64, "gone": "0" * 64},
        vocabularies={**vocabulary_hashes(), "o200k_base": "0" * 64},
        prices_dated="2999-01-01",
        python="3.99",
    )
    found = verify(bundle)
    problems = "\n".join(found.problems)
    assert len(found.problems) == 6, problems
    for said in (
        "is installed here, and the bundle was made with 0.1",
        "have the schema 999_future, and this alpasift reads up to",
        "the vocabulary o200k_base is different here",
        "the rubric accuracy is different here",
        "the rubric gone is missing here",
        "the price table here is of",
    ):
        assert said in problems
    assert "not installed here yet: not-there" in found.notes
    assert any("made on Python 3.99" in line for line in found.notes)


HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="the tags are those of Linux on x86-64")
@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        (f"a-1-{HERE}-{HERE}-linux_x86_64.whl", True),
        (f"a-1-{HERE}-{HERE}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp38-abi3-manylinux_2_17_x86_64.whl", True),
        ("a-1-1build-py3-none-any.whl", True),
        ("a-1-py3-none-manylinux1_x86_64.whl", True),
        ("a-1-py2-none-any.whl", False),
        ("a-1-cp38-cp38-manylinux_2_17_x86_64.whl", False),
        ("a-1-cp399-abi3-manylinux_2_17_x86_64.whl", False),
        ("a-1-py399-none-any.whl", False),
        (f"a-1-{HERE}-{HERE}-manylinux_2_999_x86_64.whl", False),
        (f"a-1-{HERE}-{HERE}-manylinux_2_17_aarch64.whl", False),
        (f"a-1-{HERE}-{HERE}-win_amd64.whl", False),
        (f"a-1-{HERE}-{HERE}-macosx_11_0_arm64.whl", False),
        (f"a-1-{HERE}-{HERE}t-linux_x86_64.whl", False),
        ("a.whl", False),
        ("a-1.tar.gz", False),
    ],
)
def test_whether_a_wheel_fits_follows_from_its_name(wheel: str, fits: bool) -> None:
    assert (misfit(wheel) is None) is fits, misfit(wheel)


# -- wheels -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bundle_with_wheels_installs_elsewhere_without_an_index_and_works(alpasift: Call, tmp_path: Path) -> None:
    made = alpasift("bundle", "create", "b", "--wheels", "--json")
    if made.code and "pip could not get the wheels" in made.err:
        pytest.skip(f"no index of packages can be reached: {made.err}")
    assert made.code == 0, made.err
    lines = (tmp_path / "b" / "requirements.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    checked = alpasift("bundle", "verify", "b", "--json").json
    assert (checked["problems"], len(lines)) == ([], made.json["files"] - 2)
    venv.create(tmp_path / "env", symlinks=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "PIP_", "ALPASIFT_"))}
    clean |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PATH": f"{tmp_path / 'env' / 'bin'}:{clean['PATH']}",
        "ALPASIFT_OFFLINE": "1",
    }
    command = checked["install"].split()
    assert command[:4] == ["pip", "install", "--no-index", "--find-links"]
    install = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env" / "bin" / "python"), *command[1:]]
    for step in (
        install,
        ["alpasift", "bundle", "verify", "b"],
        ["alpasift", "filter", EXAMPLES, "-o", "k.json", "--grader", "rules"],
    ):
        done = subprocess.run(step, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "k.json").read_text())


def test_wheels_that_cannot_be_fetched_are_one_line_and_leave_nothing(alpasift_process: Call, tmp_path: Path) -> None:
    env = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "https://index.example.org/simple"}
    ran = alpasift_process("--offline", "bundle", "create", "b", "--wheels", env={**env, "PIP_EXTRA_INDEX_URL": ""})
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("alpasift: ")]
    assert len(errors) == 1
    assert "pip could not get the wheels" in errors[0]
    assert [path for path in tmp_path.iterdir() if path.name != "alpasift.duckdb"] == []


@pytest.mark.parametrize("command", [(), ("create",), ("verify",)])
def test_each_help_shows_an_example(alpasift: Call, command: tuple[str, ...]) -> None:
    ran = alpasift("bundle", *command, "--help")
    assert ran.code == 0
    assert f"Example:\n    alpasift bundle {' '.join(command) or 'create'}" in ran.out.replace("      ", "    ")
