"""The far side of `sandbox`: a script for a fresh interpreter, which imports nothing of this package.

It reads jobs as JSON, shuts itself in, runs their code and writes the results' `repr`. An answer of text is a sentence.
"""

import builtins
import importlib
import json
import os
import sys

LONGEST = 20_000  # characters of one result


def limit(seconds: float, megabytes: int) -> None:
    """Hold this process to little time and memory and no new files, where the system has such limits."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        ("RLIMIT_CPU", int(seconds) + 1),
        ("RLIMIT_AS", megabytes * 1024 * 1024),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        try:
            number = getattr(resource, kind)
            resource.setrlimit(number, (most, most))
        except (AttributeError, ValueError, OSError):
            continue  # this system does not know it, or does not let it be set


def refuse(event: str, arguments: tuple) -> None:
    """An audit hook: nothing that Python reports may happen but running the code itself."""
    if event not in ("exec", "compile", "builtins.id", "object.__getattr__", "sys._getframe"):
        raise PermissionError(f"{event} is not allowed here")


def space(names: list, modules: list) -> dict:
    """The globals of the code: a white list of builtins, and imports of modules that are loaded already."""
    loaded = {module: importlib.import_module(module) for module in modules}

    def give(name, globals=None, locals=None, fromlist=(), level=0):
        if name.split(".")[0] not in loaded or level:
            raise ImportError(f"{name} is not allowed here")
        return (sys.modules[name] if name in sys.modules else loaded[name]) if fromlist else loaded[name.split(".")[0]]

    allowed = {name: getattr(builtins, name) for name in names if name != "print"}
    if "print" in names:
        allowed["print"] = lambda *a, **k: None
    if modules:
        allowed["__import__"] = give
    return {"__builtins__": allowed, "__name__": "written"}


def results(source: str, name: str, calls: list, there: dict) -> list | str:
    """Run the code, then its function for each list of arguments."""
    try:
        exec(compile(source, "<written>", "exec"), there)
    except BaseException as problem:
        return f"it raised {type(problem).__name__} when it was defined."
    function, found = there.get(name), []
    if not callable(function):
        return f"it defines no function {name!r}."
    for call in calls:
        try:
            said = repr(function(*call))
            found.append(said if len(said) <= LONGEST else "!too long")
        except BaseException as problem:
            found.append(f"!{type(problem).__name__}")
    return found


def main() -> None:
    """Read, shut in, run, answer."""
    order = json.loads(sys.stdin.buffer.read())
    spaces = [space(order["names"], order["modules"]) for _ in order["jobs"]]
    limit(order["seconds"], order["megabytes"])
    sys.addaudithook(refuse)
    answers = [results(*job, there) for job, there in zip(order["jobs"], spaces)]
    os.write(1, json.dumps(answers).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
