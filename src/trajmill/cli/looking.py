"""Look at stores and datasets: counts, rejections, figures, pages, servers."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from trajmill.cli.common import DatasetAddress, StoreAddress, app, named_numbers


@app.command(rich_help_panel="Look")
def info(path: Annotated[str, typer.Argument(help="Address of a store or folder of a release.")]) -> None:
    """Count what a store or a release holds and check that nothing is missing. Exit code 1 when a check fails."""
    from trajmill.report import print_info

    if not print_info(path):
        raise typer.Exit(1)


@app.command(rich_help_panel="Look")
def rejections(
    store: StoreAddress,
    rule: Annotated[str | None, typer.Option(help="Only what this rule rejected.")] = None,
    identifier: Annotated[
        str | None, typer.Option("--id", help="Only this frame, trajectory, task or material.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Rows to show; 0 shows all.")] = 50,
) -> None:
    """Say why frames, trajectories and records were turned away."""
    from trajmill.report import print_rejections

    print_rejections(store, rule, identifier, limit)


@app.command(rich_help_panel="Look")
def figures(
    dataset: DatasetAddress,
    out: Annotated[Path, typer.Option(help="Folder for pictures (PNG, SVG) and their numbers (CSV, Parquet).")],
    compare: Compared = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this figure; may be repeated.")
    ] = None,
) -> None:
    """Draw what a dataset is like: elements, forces, energies, stress, space groups, steps, curation, overlap."""
    from trajmill.analysis import FIGURES, base, files, numbers
    from trajmill.report import RowProgress

    chosen, subjects = base.pick(FIGURES, only), files.subjects([dataset, *(compare or [])])
    with RowProgress("count") as progress:
        counts = numbers.count(subjects, chosen, report=progress.update)
    with RowProgress("draw") as progress:
        written = files.save(counts, out, report=progress.update)
    sys.stdout.writelines(f"{line}\n" for line in files.summary(counts, written))


@app.command(rich_help_panel="Look")
def report(
    dataset: DatasetAddress,
    compare: Compared = None,
    out: Annotated[Path, typer.Option(help="HTML file to make.")] = Path("report.html"),
) -> None:
    """Write one HTML page with all figures, counts, units, curation and versions. It needs no network."""
    from trajmill.analysis import FIGURES, files, numbers, page
    from trajmill.report import RowProgress

    subjects = files.subjects([dataset, *(compare or [])])
    with RowProgress("count") as progress:
        counts = numbers.count(subjects, FIGURES, report=progress.update)
    with RowProgress("draw") as progress:
        page.write(counts, subjects, out, report=progress.update)
    sys.stdout.writelines(f"{line}\n" for line in files.summary(counts, [out]))


@app.command(rich_help_panel="Look")
def pes(
    dataset: DatasetAddress,
    out: Annotated[Path, typer.Option(help="Folder to make files in, a folder for each chemical system.")],
    elements: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Fe,Cu,...", help="Chemical system; may be repeated; default those of the LeMat-Traj paper."
        ),
    ] = None,
    only_subsets: Annotated[
        bool,
        typer.Option("--only-subsets", help="Take cells with any of the elements and no other, not only with all."),
    ] = False,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="DATASET", help="Lay it out beside; may be repeated.")
    ] = None,
    functional: Annotated[str, typer.Option(help="pbe, pbesol, scan or r2scan.")] = "pbe",
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", metavar="ELEMENT=EV", help="Energy per atom; default of the data's own elements."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that compute SOAP.")] = 1,
) -> None:
    """Draw the potential-energy surface of chemical systems: SOAP, two principal components, formation energy."""
    from trajmill.analysis.pes import PRESETS, save_points, surface
    from trajmill.analysis.pes_drawing import save_figures
    from trajmill.dataset import Dataset
    from trajmill.report import RowProgress, print_paths

    datasets = {address: Dataset(address) for address in (dataset, *(compare or []))}
    given = named_numbers("--reference", reference, "Fe=-8.3")
    systems = [tuple(re.split("[,-]", text)) for text in elements or PRESETS]
    made = []
    for system in systems:
        with RowProgress("-".join(system)) as progress:
            found = surface(
                datasets, system, subsets=only_subsets, functional=functional, references=given or None, jobs=workers,
                report=progress.update,
            )  # fmt: skip
        folder = out / "-".join(system)
        folder.mkdir(parents=True, exist_ok=True)
        save_points(found, folder)
        save_figures(found, folder)
        made.append(folder)
    print_paths(made)


Compared = Annotated[
    list[str] | None, typer.Option("--compare", metavar="DATASET", help="Draw it beside; may be repeated.")
]


@app.command(rich_help_panel="Look")
def explore(
    dataset: DatasetAddress,
    host: Annotated[str, typer.Option(help="To bind to; any but this machine's own asks for a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token on this machine too.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
) -> None:
    """Look through a dataset in the browser: a page served from this machine, until Ctrl-C."""
    from trajmill.explorer.server import Explorer, open_browser
    from trajmill.report import RowProgress

    with RowProgress("index") as progress:
        server = Explorer(dataset, host=host, port=port, token=token, report=progress.update)

    def ready() -> None:
        sys.stdout.write(f"{server.url}\nCtrl-C stops it\n")
        sys.stdout.flush()
        if not no_open:
            open_browser(server.url)

    server.run(ready)


@app.command(rich_help_panel="Look")
def serve(
    dataset: DatasetAddress,
    host: Annotated[str, typer.Option(help="To listen on; the default answers this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 5000,
    provider_prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Of properties that OPTIMADE does not define: _PREFIX_energy.")
    ] = "trajmill",
) -> None:
    """Answer OPTIMADE clients with final structures and trajectories, until Ctrl-C."""
    from trajmill.optimade import serve as run
    from trajmill.report import RowProgress

    with ExitStack() as stack:
        progress = stack.enter_context(RowProgress("index"))

        def ready(url: str, trajectories: int, frames: int) -> None:
            stack.close()
            sys.stdout.write(f"{url}/v1: {trajectories:,} trajectories, {frames:,} frames\nCtrl-C stops it\n")
            sys.stdout.flush()

        run(dataset, host=host, port=port, prefix=provider_prefix, ready=ready, report=progress.update)
