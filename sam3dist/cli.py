"""The command line, and the composition root: the only place that knows every layer."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from sam3dist import __version__
from sam3dist.errors import ConfigError, in_one_line
from sam3dist.verbs import (
    compare,
    config,
    evaluate,
    predict,
    prepare,
    sizes,
    smoke,
    submit,
    teach,
    train,
    tune,
    weights,
)
from sam3dist.verbs.grammar import Parser, Verb, split

VERBS: tuple[Verb, ...] = (
    smoke.VERB,
    prepare.VERB,
    teach.VERB,
    train.VERB,
    tune.VERB,
    evaluate.VERB,
    compare.VERB,
    predict.VERB,
    weights.VERB,
    config.VERB,
    sizes.VERB,
    submit.VERB,
)

GRAMMAR = """\
Every verb:  sam3dist VERB [ARGUMENTS] [dotted.key=value ...]

A dotted key changes one setting, whatever the preset says; `sam3dist config PRESET` prints them all with what
they do. All but config and submit write report.json and report.html into a run directory and print its path last.
SAM3DIST_DEBUG=1 shows where in the code a mistake was noticed."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if the verb did what it was asked, 2 for a person's mistake, 1 for ours, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()  # while a closed pipe can still be told from a bug
        return code
    except KeyboardInterrupt:
        print("\nsam3dist: interrupted; the same command again goes on where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `sam3dist config base | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        mistake = _persons_mistake(error)
        if mistake is None or os.environ.get("SAM3DIST_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        if mistake is None:
            return 1
        print(f"sam3dist: {mistake}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    verb = next((verb for verb in VERBS if words and words[0] == verb.name), None)
    if verb is None:
        return _without_verb(words)
    if verb is submit.VERB and words[1:2] not in (["-h"], ["--help"]):
        return submit.run_words(words[1:])  # its words are those of another verb
    arguments, overrides = split(words[1:])
    try:
        options = _parser(verb).parse_args(arguments)
    except SystemExit:  # argparse, after --help
        return 0
    outcome = verb.run(options, overrides)
    if isinstance(outcome, int):
        return outcome
    if outcome is not None:
        print(outcome, flush=True)
    return 0


def _without_verb(words: list[str]) -> int:
    if words and not words[0].startswith("-"):
        from difflib import get_close_matches

        names = [verb.name for verb in VERBS]
        near = get_close_matches(words[0], names, n=1)
        guess = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}."
        raise ConfigError(f"{words[0]}: no such verb; {guess}")
    parser = Parser(prog="sam3dist", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    if parser.parse_args(words).version:
        print(f"sam3dist {__version__}")
        return 0
    lines = ["Distil SAM3 into a Pareto front of small students.", "", GRAMMAR, ""]
    for verb in VERBS:
        lines += [f"{verb.name:8} {verb.summary}", f"             {verb.examples[0]}"]
    print("\n".join([*lines, "", "`sam3dist VERB --help` tells more."]))
    return 0 if words else 2


def _parser(verb: Verb) -> Parser:
    examples = "\n".join(f"  {example}" for example in verb.examples)
    parser = Parser(
        prog=f"sam3dist {verb.name}",
        usage=None,
        description=f"{verb.summary[0].upper()}{verb.summary[1:]}.\n\n{verb.details}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [dotted.key=value ...]"
    return parser


def _persons_mistake(error: BaseException | None) -> str | None:
    """One line for what a person can mend, also where Ray has wrapped it in errors of its own; None for a bug."""
    seen: set[int] = set()  # an error may be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        line = in_one_line(error)
        if line is not None:
            return line
        error = error.__cause__
    return None


if __name__ == "__main__":
    sys.exit(main())
