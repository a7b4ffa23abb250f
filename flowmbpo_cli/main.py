"""The `flowmbpo` command: one Typer app, one module per command.

Modules of commands import torch, pydantic and rich only when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flowmbpo_cli import checkpoint, data, diagnose, doctor, envs, evaluate, parity, presets, train
from flowmbpo_cli.failures import ContractGroup, report_bug

app = typer.Typer(
    name="flowmbpo",
    cls=ContractGroup,
    epilog="Start with `flowmbpo train`, then `flowmbpo eval RUN_DIR`.",
    rich_markup_mode=None,  # plain help: rich alone would take most of the start-up time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works after any command too.")] = False,
) -> None:
    """Flow-matching world models and flow policies beside PWM's baselines."""
    if show_version:
        doctor.version(json_=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (train.train, train.pretrain, train.finetune, train.specialize):
    app.command(cls=train.TrainCommand)(command)
app.command("eval")(evaluate.evaluate)
app.add_typer(presets.app, name="presets")
app.add_typer(envs.app, name="envs")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(data.app, name="data")
app.command("diagnose")(diagnose.diagnose)
app.command("parity")(parity.parity)
app.command("doctor")(doctor.doctor)
app.command("version")(doctor.version)


def main() -> None:
    """The console script."""
    sys.excepthook = report_bug
    if "--json" in sys.argv[1:]:
        from flowmbpo_cli.output import reserve_stdout

        reserve_stdout()
    typer.main.get_command(app).main(prog_name="flowmbpo")
