"""`hiermem`: read a document, ask it, evaluate, measure."""

import logging
import os
from typing import Annotated

import typer

import hiermem
from hiermem.cli import (
    agents,
    asking,
    bench,
    documents,
    equip,
    evaluate,
    heads,
    importing,
    inspect,
    library,
    reading,
    serve,
    signals,
    terminal,
    train,
)
from hiermem.cli.options import TRUST_REMOTE_CODE
from hiermem.cli.signals import Stopped, stopping
from hiermem.ending import end
from hiermem.errors import HierMemError

app = typer.Typer(
    name="hiermem",
    invoke_without_command=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("read")(reading.read)
app.command("ask")(asking.ask)
app.command("add")(library.add)
app.command("list")(library.list_documents)
app.command("remove")(library.remove)
app.command("export")(library.export)
app.command("serve")(serve.serve)
app.command("mcp")(agents.mcp)
app.command("verify")(documents.verify)
app.command("demo")(documents.demo)
app.command("calibrate")(stopping(heads.calibrate))
app.command("heads")(stopping(heads.heads))
app.command("inspect")(inspect.inspect)
app.command("equip")(stopping(equip.equip))
app.command("evolve")(stopping(train.evolve))
app.command("train")(stopping(train.train))
app.command("report")(evaluate.report)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(evaluate.lm_eval)
app.add_typer(evaluate.app, name="eval")
app.add_typer(importing.app, name="import")
app.add_typer(bench.app, name="bench")


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run code that a model brings along: for models that you trust."
        ),
    ] = False,
) -> None:
    """Read documents of any length in constant memory, and ask them."""
    TRUST_REMOTE_CODE.set(trust_remote_code)
    if version:
        typer.echo(f"hiermem {hiermem.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors are one plain sentence on standard error and exit status 2."""
    try:
        _prepare()
        status = _status()
    except KeyboardInterrupt:  # before it had begun, or when all was done
        status = 130
    signals.end_by_signals()
    end(status)


def _prepare() -> None:
    signals.interrupt_once()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait take the cores of others
    # transformers imports these where they are installed, and they warn on every import.
    for name in ("DeepSpeed", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    terminal.prepare()


def _status() -> int:
    """Run the command; its exit status."""
    try:
        status = int(app(standalone_mode=False) or 0)
        terminal.write("")
    except HierMemError as error:
        return _failed(str(error), 2)
    except Stopped as stopped:
        return _failed("stopped.", stopped.status)
    except terminal.ReaderGone:
        return terminal.CLOSED_PIPE
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _failed(f"The system refused{where}: {error.strerror or error}.", 2)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # A usage error of the command line parser; without a message it has just printed the help.
        message, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hiermem"
        return _failed(f"{message}. See `{command} --help`.", 2) if message else 2
    # Ctrl-C is a status already where the command line parser saw it.
    return _failed("stopped.", 130) if status == 130 else status


def _failed(message: str, status: int) -> int:
    terminal.complain(message)
    return status


if __name__ == "__main__":
    main()
