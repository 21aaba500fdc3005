"""What a Python process runs first that was started by one under `alpasift --offline`: it is held like its parent.

Python imports a module of this name when it starts; this folder stands first on the PYTHONPATH that
`alpasift.graders.offline.guard` hands down. Another sitecustomize that it hides is run after it, as it would have been.
Where the process cannot be held it does not start.
"""

import sys
from importlib import util
from importlib.machinery import PathFinder
from pathlib import Path


def _hold() -> None:
    name, here = "alpasift.graders.offline.guard", Path(__file__).resolve().parent
    spec = util.spec_from_file_location(name, here.parent / "guard.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # what this process imports later is this very module: one hook, one error class
    spec.loader.exec_module(module)
    module.go_offline()


def _run_hidden() -> None:
    here = Path(__file__).resolve().parent
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


try:
    _hold()
except BaseException as error:
    raise SystemExit(f"alpasift: --offline: network access of this Python cannot be blocked: {error!r}") from error
_run_hidden()
