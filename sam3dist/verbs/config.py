"""`sam3dist config`: the resolved settings of a preset."""

from __future__ import annotations

import argparse

from sam3dist.verbs.grammar import Overrides, Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", nargs="?", help="the name of a preset, or a YAML file")


def run(options: argparse.Namespace, overrides: Overrides) -> None:
    from sam3dist.config.load import load_preset, presets, to_yaml, with_overrides
    from sam3dist.errors import ConfigError

    if options.preset is None:
        if overrides:
            raise ConfigError("config: give the preset that the overrides are for, as in `sam3dist config base`.")
        print("\n".join(f"{name:12} {purpose}" for name, purpose in presets().items()))
        return
    print(to_yaml(with_overrides(load_preset(options.preset), overrides), comments=True), end="")


VERB = Verb(
    name="config",
    summary="print the settings of a preset as YAML, every value resolved and explained",
    details="The output is itself a preset: save it, change it, give its path to `sam3dist train`.\n"
    "Without a preset, lists the ones that ship and what each is for.",
    examples=(
        "sam3dist config base",
        "sam3dist config",
        "sam3dist config small strategy.kind=fsdp strategy.num_workers=8 > mine.yaml",
    ),
    arguments=arguments,
    run=run,
)
