"""The command ``lit-thinkfast``: one dispatcher over two kinds of verbs.

Trainer verbs (``fit validate test predict``) are Lightning's own command line with our classes. Tool verbs are the
typed functions of ``lit_thinkfast.tools``; they never import Lightning. Only this file knows LightningCLI.
It also draws two lines for every verb: which packages a configuration may name (an allow-list, because a ``class_path``
is an import chosen by whoever wrote the file), and how a mistake is told (one line on stderr, exit code 2).
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

TRAINER_VERBS = {
    "fit": "train a student (or a teacher, or a reward model) with Lightning",
    "validate": "held-out losses, and sampled accuracy, of a student during training",
    "test": "sampled accuracy on problems of the test split",
    "predict": "run predict_step of your own module",
}
TOOL_VERBS = {
    "convert": "teacher folder or hub id -> student folder",
    "sensitivity": "teacher and a corpus -> which layers should keep attention (resumable)",
    "plan": "configuration of a training -> its memory, arithmetic and GPU-hours, before it is run",
    "export": "model -> Hugging Face folder in a type of your choice",
    "generate": "problems -> completions (JSON lines, resumable, timed)",
    "merge": "what several processes of an unfinished generate have sampled -> one file",
    "verify": "completions -> verdicts, with reward scores if a reward model is given",
    "evaluate": "generate + verify + metrics in one; or metrics from files",
    "benchmark": "decode: speed and memory against batch size, beside what the machine allows",
    "report": "evaluations of several models -> tables, figures, one HTML page",
    "compare": "two evaluations, problem by problem -> who wins what, how sure, what flipped",
    "quickstart": "the whole job on the embedded teacher, end to end",
}
# Verbs that are not the function of their name in tools; jsonargparse would find a function named convert on the shelf.
_ELSEWHERE = {
    "benchmark": "speed:BENCHMARKS",
    "convert": "handover:convert_teacher",
    "export": "handover:export",
    "quickstart": "quickstart:run",
    "sensitivity": "layer_choice:sensitivity",
}
WORDS = {"convert": ("TEACHER", "OUT"), "compare": ("FIRST", "SECOND")}
"""Options that may stand without their name, in this order."""
ALLOWED_IMPORTS = (
    "lit_thinkfast",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "torch.optim",
)
_ALLOW_FLAG = "--allow-import"
_ALLOW_VARIABLE = "LIT_THINKFAST_ALLOW_IMPORT"
_DEBUG_VARIABLE = "LIT_THINKFAST_DEBUG"
_UNUSED = "parameters that were not used in producing the loss"  # Lightning's words, of an error of DDP


def main(args: Sequence[str] | None = None) -> None:
    """Run one verb; the console script calls this without arguments.

    Args:
        args: Arguments after the program's name; ``None`` takes them from ``sys.argv``.

    Raises:
        SystemExit: With code 2 and one line on stderr for a mistake in what was asked, 130 when interrupted.
    """
    os.environ.setdefault("TQDM_DELAY", "2")  # progress bars of other libraries only where there is time to see them
    try:
        _dispatch(args)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get(_DEBUG_VARIABLE) or not _is_users(error):
            raise
        _fail(str(error) or type(error).__name__)


def _dispatch(args: Sequence[str] | None) -> None:
    argv = _take_allowed_imports(sys.argv[1:] if args is None else list(args))
    if args is None:
        sys.argv[1:] = argv  # what Lightning gives to the processes that it starts for further devices
    verb = argv[0] if argv else ""
    if verb in ("-h", "--help", "help"):
        print(_help())
    elif verb in ("-V", "--version"):
        from lit_thinkfast import __version__

        print(f"lit-thinkfast {__version__}")
    elif verb == "plan":  # beside its own options it takes those of fit, --config among them
        _guard_imports()
        from lit_thinkfast.plan import main as run_plan

        run_plan([_with_underscores(argument) for argument in argv[1:]])
    elif verb in TOOL_VERBS:
        _guard_imports()
        options = [_with_underscores(arg) for arg in argv[1:]]
        if verb == "benchmark":
            _check_subject(options)
        _run_tool(verb, _name_words(verb, options) if verb in WORDS else options)
    elif verb in TRAINER_VERBS:
        _guard_imports()
        _run_trainer(None if args is None else argv)
    elif verb:
        close = difflib.get_close_matches(verb, [*TOOL_VERBS, *TRAINER_VERBS], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"verbs are {', '.join([*TOOL_VERBS, *TRAINER_VERBS])}"
        _fail(f"unknown verb {verb!r}; {hint}")
    else:
        _fail("no verb was given; see lit-thinkfast --help")


def _help() -> str:
    def table(verbs: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<11} {does}" for verb, does in verbs.items())

    return f"""usage: lit-thinkfast VERB [options]

Distil Transformers into fast hybrid and Mamba students, and measure which one reasons best in a fixed time.

tools (lit-thinkfast VERB --help):
{table(TOOL_VERBS)}

training (Lightning's command line; needs --config FILE, see configs/):
{table(TRAINER_VERBS)}

options:
  {_ALLOW_FLAG} PACKAGE   let configurations name classes of PACKAGE (found in the environment or in this folder)
  --version              show the version
  --help                 show this text

Every verb takes --config FILE and --print_config. Options of tools may be written with - or with _.
{_DEBUG_VARIABLE}=1 shows the traceback behind an error."""


def _run_tool(verb: str, argv: list[str]) -> None:
    from jsonargparse import ArgumentParser, auto_cli

    class ToolParser(_OneLineErrors, ArgumentParser):
        pass

    module, _, name = _ELSEWHERE.get(verb, f"tools:{verb}").partition(":")
    tool: Callable[..., Any] = getattr(importlib.import_module(f"lit_thinkfast.{module}"), name)
    auto_cli(tool, args=argv, as_positional=False, parser_class=ToolParser, prog=f"lit-thinkfast {verb}")


def _check_subject(argv: list[str]) -> None:
    """Refuse a call of benchmark that does not say what is to be measured, as it was written before there was more."""
    from lit_thinkfast.speed import BENCHMARKS

    known = " or ".join(BENCHMARKS)
    if not argv:
        _fail(f"benchmark needs what to measure: {known}; see lit-thinkfast benchmark {known} --help")
    if argv[0].startswith("--") and argv[0].partition("=")[0] not in ("--help", "--config", "--print_config"):
        _fail(
            f"benchmark needs what to measure before its options; write lit-thinkfast benchmark {known} {argv[0]} ..."
        )
    if not argv[0].startswith("-") and argv[0] not in BENCHMARKS:
        _fail(f"benchmark cannot measure {argv[0]!r}; it knows {known}")


def instantiate(args: Sequence[str]) -> Any:
    """Return Lightning's command line object for a configuration, with ``trainer``, ``model`` and ``datamodule`` made.

    For programs that take the trainer into their own hands; nothing is run.

    Args:
        args: As after ``lit-thinkfast fit``, for example ``["--config", "configs/arithmetic/teacher.yaml"]``.
    """
    _guard_imports()
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python")
    return _trainer_cli(list(args), run=False)


def _run_trainer(argv: list[str] | None) -> None:
    _trainer_cli(argv, run=True)


def _trainer_cli(argv: list[str] | None, *, run: bool) -> Any:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    import lit_thinkfast.data.module  # noqa: F401  classes that are imported may be named without their package
    from lit_thinkfast.callbacks import LogConfig
    from lit_thinkfast.distill.module import DistillationModule

    class TrainerParser(_OneLineErrors, LightningArgumentParser):
        pass

    # adverts for other products, and a deprecation between Lightning and torch
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    return LightningCLI(
        DistillationModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=TrainerParser,
        parser_kwargs={"prog": "lit-thinkfast"},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=LogConfig,
        save_config_kwargs={"overwrite": True},
        args=argv,
        run=run,
    )


class _OneLineErrors:
    """Parsers that tell a mistake in one line instead of a usage text."""

    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error or os.environ.get(_DEBUG_VARIABLE):
            super().error(message, ex)  # type: ignore[misc]
        _fail(message)


def _guard_imports() -> None:
    """Let configurations name only the packages of ``ALLOWED_IMPORTS`` and those that the user trusts."""
    from jsonargparse import set_parsing_settings

    trusted = [name for name in os.environ.get(_ALLOW_VARIABLE, "").split(",") if name]
    if trusted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in trusted:
        try:
            importlib.import_module(name)  # a package of mixers adds them to MIXERS here
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise
            _fail(f"{_ALLOW_FLAG} {name}: no such package in the environment or in {os.getcwd()}")
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED_IMPORTS, *trusted])


def _take_allowed_imports(argv: list[str]) -> list[str]:
    """Move ``--allow-import PACKAGE`` from the arguments to the environment, which child processes inherit."""
    rest: list[str] = []
    names = [name for name in os.environ.get(_ALLOW_VARIABLE, "").split(",") if name]
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != _ALLOW_FLAG:
            rest.append(argument)
            continue
        name = value if equals else next(arguments, "")
        if not all(part.isidentifier() for part in name.split(".")):
            _fail(f"{_ALLOW_FLAG} takes the name of a package, got {name!r}")
        names.append(name)
    if names:
        os.environ[_ALLOW_VARIABLE] = ",".join(dict.fromkeys(names))
    return rest


def _with_underscores(argument: str) -> str:
    """Return ``--top-p=0.9`` as ``--top_p=0.9``; values, and names behind a dot, are left alone."""
    option = re.match(r"--[^=.]*", argument)
    return argument if option is None else "--" + option[0][2:].replace("-", "_") + argument[option.end() :]


def _name_words(verb: str, argv: list[str]) -> list[str]:
    """Return the arguments of a verb of :data:`WORDS` with its words named, and ``--from`` as ``--source``.

    Every option of these verbs takes one value, or has it behind an equals sign, but for those that print and end.
    """
    named: list[str] = []
    words: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("-"):
            words.append(argument)
            continue
        option, equals, value = argument.partition("=")
        named.append(("--source" if option == "--from" else option) + equals + value)
        if not equals and option not in ("-h", "--help", "--print_config"):
            named.extend(itertools.islice(arguments, 1))
    given = {argument.partition("=")[0] for argument in named}
    free = [option for word in WORDS[verb] if (option := f"--{word.lower()}") not in given]
    if len(words) > len(free):
        shape = f"{verb} {' '.join(WORDS[verb])}"
        _fail(f"{shape} has no place for {words[len(free)]!r}; see lit-thinkfast {verb} --help")
    return [*(part for pair in zip(free, words, strict=False) for part in pair), *named]


def _is_users(error: Exception) -> bool:
    """Say whether ``error`` is about what was asked for rather than about our code."""
    if isinstance(error, (ValueError, OSError, ImportError)) or _UNUSED in str(error):
        return True
    return type(error).__name__ == "MisconfigurationException"  # by name: tool verbs do not import lightning


def _fail(message: str, *, code: int = 2) -> NoReturn:
    print(f"lit-thinkfast: error: {_one_line(message)}", file=sys.stderr)
    sys.exit(code)


def _one_line(message: str) -> str:
    """Bring a message to one line, keeping what the reader can act on.

    jsonargparse tells a mistake inside a nested class as a tree of attempted types with a dump of the value; kept are
    the path to the option and the reasons. Where it names its own API as the remedy, ours is named instead.
    """
    if denied := re.search(r"Importing '([^']+)' is not allowed, denied by the '([^']+)' entry", message):
        name, entry = denied.groups()
        remedy = (
            f"if you trust that package, add {_ALLOW_FLAG} {name.split('.')[0]}"
            if entry == "*"
            else "it reaches outside the library"
        )
        return f"a configuration may not name {name!r}: {remedy}"
    if _UNUSED in message:
        return (
            "the losses give some trainable parameters no gradient, which stops DDP; leave them out of trainable, "
            "for example ^model\\.layers\\. for all but embeddings, final norm and head (docs/recipes.md, Freezing)"
        )
    if "invalid strategy name" in message and "parallel" in message.lower():
        return (
            "a strategy that is a class needs a setting behind it, for example --trainer.strategy.data_parallel_size 2 "
            "--trainer.strategy.tensor_parallel_size 1"
        )
    message = re.sub(r"\s*-?\s*Not a valid subclass of .*", "", message, flags=re.DOTALL)
    lines = [line.strip() for line in message.splitlines()]
    if any(line.startswith("Does not validate against any") for line in lines):
        noise = (
            "Does not validate against any",
            "Subtypes:",
            "Errors:",
            "Given value type:",
            "Given value: {",
            "Given value: Namespace",
            "- Expected a <class 'NoneType'>",
        )
        lines = [line for line in lines if not line.startswith(noise)]
    text = " ".join(" ".join(lines).split()).removeprefix("- ").replace(": - ", ": ")
    for pattern, plain in (
        (r"(?:- )?Problem with given class_path '([^']+)':", r"\1:"),
        (r"Parser key \"([^\"]+)\":", r"\1:"),
        (r"<class '([^']+)'>", r"\1"),
        (r"Expected an? (?:typing\.)?Literal\[(.*?)\]", r"Expected one of \1"),
        (r" - Expected (?:an? )?", ", or "),
        (r" Given value: NestedArg\(.*$", ""),
        (r" Given value: (.*)$", r". Got value: \1"),
    ):
        text = re.sub(pattern, plain, text)
    return text
