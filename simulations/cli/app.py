"""The command `fedcompress`: its commands, and how it ends.

Heavy libraries are imported by the command that needs them, so that `--help` answers at once.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.faults import INTERRUPTED, STOPPED, explain

app = typer.Typer(
    name="fedcompress",
    help="Compressed federated learning, measured in bytes.",
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Engine(StrEnum):
    """Where clients run."""

    local = "local"
    ray = "ray"


class Format(StrEnum):
    """What a model can be written as."""

    onnx = "onnx"
    safetensors = "safetensors"
    torch_export = "torch-export"
    archive = "archive"


class Listing(StrEnum):
    """What can be listed."""

    stages = "stages"
    coders = "coders"
    wrappers = "wrappers"
    methods = "methods"
    models = "models"
    data = "data"
    studies = "studies"


def _show_version(wanted: bool) -> None:
    if wanted:
        from fedcompress import __version__

        typer.echo(f"fedcompress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    # Typer prints the help itself where it draws with rich, and gives the text elsewhere.
    if context.invoked_subcommand is None and (text := context.get_help()):
        typer.echo(text)


@app.command()
def run(
    study: Annotated[str, typer.Argument()],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study; repeatable."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds data sets as folders of parquet files.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the records.", show_default="runs/NAME")
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="Where clients run.", show_default="as the study says")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N", help="Worker processes: a number, or auto.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Head of a running Ray cluster.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run; refuse to start a new one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="[FILE]",
            help="Write what ran when, for ui.perfetto.dev, to FILE.json or FILE.json.gz "
            "(default: trace.json in --out).",
        ),
    ] = None,
) -> None:
    """Run a study: every strategy with every seed, then a table and a report.

    STUDY is a study file, or the name of one that comes along (see fedcompress list studies).

    A folder that holds part of this study is gone on with, finished cells are skipped.
    """
    from simulations.cli.ahead import server_ahead

    chosen = None if engine is None else engine.value
    with server_ahead(study, assignments or [], chosen, address) as server:
        from simulations.cli.run import run_command

        run_command(
            study,
            assignments or [],
            data_dir=data_dir,
            out=out,
            engine=chosen,
            workers=workers,
            address=address,
            resume=resume,
            quiet=quiet,
            profile=profile,
            server=server,
        )


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(metavar="APP")],
    clients: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many clients.", show_default="as the app says"),
    ] = None,
    uplink: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Compress what clients send.", show_default="dense"),
    ] = None,
    downlink: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Compress what they are sent.", show_default="dense"),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option(metavar='"KEY=VALUE …"', help="Change settings of the app; repeatable."),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Where clients run.")] = Engine.ray,
    workers: Annotated[
        str, typer.Option(metavar="N", help="Worker processes: a number, or auto.")
    ] = "auto",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Head of a running Ray cluster.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the compression, and of Python's random, which draws clients.")
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
) -> None:
    """Run somebody's Flower app with many clients, compressed without touching its code.

    APP is the folder of a Flower app, as flwr run takes it.
    """
    from simulations.cli.simulate import simulate_command

    simulate_command(
        folder,
        clients=clients,
        uplink=uplink,
        downlink=downlink,
        run_config=run_config or [],
        engine=engine.value,
        workers=workers,
        address=address,
        seed=seed,
        json_file=json_file,
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument()],
) -> None:
    """Write figures, tables and the HTML report of a run, and show its table.

    FOLDER is the folder of a run, which was its --out.
    """
    from simulations.cli.results import show_results

    show_results(folder)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN")],
    to: Annotated[Format, typer.Option(help="What to write.")],
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL-seedK", help="Which cell.", show_default="the only one, if it is"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="global|student|GROUP", help="Which of its models.")
    ] = "global",
    prune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE",
            help="0.9 sets nine tenths of the weights to zero, 2:4 two of every four; rows:0.5 "
            "removes half of all filters, rows, heads and units; repeatable.",
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="int8|int4|codebook", help="How to round weights.")
    ] = None,
    tune: Annotated[
        int, typer.Option(metavar="EPOCHS", help="Tune after each step, on unlabelled rows.")
    ] = 0,
    importance: Annotated[
        str, typer.Option(metavar="magnitude|taylor|fisher", help="What rows are chosen by.")
    ] = "magnitude",
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Most bytes, as 100kB: prune and round as it takes."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file.", show_default="exports/ of the cell's folder")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of data sets.", show_default="as in the run")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a trained model for deployment: pruned, quantized, checked in a fresh process.

    RUN is the folder of a run, which was its --out.
    """
    from simulations.cli.export import export_command

    export_command(
        folder,
        to=to.value,
        cell=cell,
        model=model,
        prune=prune or [],
        quantize=quantize,
        tune=tune,
        importance=importance,
        budget=budget,
        out=out,
        data_dir=data_dir,
        as_json=as_json,
    )


@app.command(name="explain")
def explain_(
    folder: Annotated[Path, typer.Argument()],
    cell: Annotated[
        str | None,
        typer.Option(metavar="LABEL-seedK", help="One cell.", show_default="all that are finished"),
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", help="Test rows that models answer, at most.")
    ] = 10_000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of data sets.", show_default="as in the run")
    ] = None,
) -> None:
    """Say what each model file of a run costs and why: size, time, accuracy, calibration, layers.

    FOLDER is the folder of a run, which was its --out.
    """
    from simulations.cli.explain import explain_command

    explain_command(folder, cell=cell, rows=rows, data_dir=data_dir)


@app.command(name="list")
def list_(
    what: Annotated[Listing | None, typer.Argument()] = None,
) -> None:
    """List stages, coders, wrappers, methods, models, data and the studies that come along.

    WHAT is one of these; all of them are listed if it is left out.
    """
    from simulations.cli.listing import show_listing

    for name in [what.value] if what is not None else [each.value for each in Listing]:
        show_listing(name)


@app.command(name="try")
def try_(
    spec: Annotated[str, typer.Argument()],
    file: Annotated[Path, typer.Argument()],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compress one update: bytes by stream, error, and milliseconds.

    SPEC is a compressor, such as 'top_k(0.01) | entropy()'.

    FILE is an update: the arrays of a .npy or .safetensors file.
    """
    from simulations.cli.trial import show_trial

    show_trial(spec, file, as_json=as_json)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument()] = Path(),
) -> None:
    """Write a commented study file and a small Flower app that compresses.

    FOLDER is where to write; it is made if missing.
    """
    from simulations.cli.start import write_start

    write_start(folder)


def with_profile(arguments: list[str]) -> list[str]:
    """Let ``--profile`` stand without its FILE, which Typer's options cannot."""
    alone = "--profile="
    after = [*arguments, ""][1:]
    return [
        alone if word == "--profile" and not following.endswith((".json", ".json.gz")) else word
        for word, following in zip(arguments, after, strict=True)
    ]


def main() -> None:
    """Run the command; a mistake ends it with one line on stderr and no traceback."""
    # Read by the libraries when they are imported, so set before any is.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        status = typer.main.get_command(app)(with_profile(sys.argv[1:]), standalone_mode=False)
    except BaseException as error:
        explained = None if isinstance(error, SystemExit) else explain(error)
        if explained is None:
            raise
        line, status = explained
        sys.stderr.write(f"fedcompress: {line}\n")
        raise SystemExit(status) from None
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this status and says nothing
        sys.stderr.write(f"fedcompress: {STOPPED}\n")
    raise SystemExit(status if isinstance(status, int) else 0)
