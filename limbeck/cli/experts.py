"""`limbeck experts`: the commands on a registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.options import Json, RegistryFolder, RunFolder
from limbeck.cli.terminal import error_text, print_error, print_result, watched

if TYPE_CHECKING:
    from limbeck.experts.registry import Registry

FAILED = 1

app = typer.Typer(help="Keep distilled models as experts, in a registry that is a folder.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="name of the expert", show_default=False)]
Version = Annotated[str | None, typer.Option("--version", help="which one (default: the newest)")]
RepoId = Annotated[str, typer.Argument(metavar="REPO_ID", help="repository on the Hub, OWNER/NAME", show_default=False)]


def _registry(path: Path) -> Registry:
    from limbeck.experts.registry import Registry

    return Registry(path)


@app.command("add")
def add(
    run: RunFolder,
    registry: RegistryFolder,
    name: Annotated[str, typer.Option(help="a-z, 0-9, '.', '_', '-'", show_default=False)],
    version: Annotated[str | None, typer.Option(help="semantic version (default: the next one)")] = None,
    domain: Annotated[str | None, typer.Option(help="what it is for, in a word (default: the recipe's name)")] = None,
    description: Annotated[str | None, typer.Option(help="in a sentence (default: the recipe's scope)")] = None,
    languages: Annotated[list[str], typer.Option(metavar="CODE", help="such as en; may be repeated")] = [],  # noqa: B006
    counter: Annotated[
        list[str],
        typer.Option(metavar="FILE|TEXT", help="prompts that are not its own (default: other experts' examples)"),
    ] = [],  # noqa: B006
    export: Annotated[
        Path | None, typer.Option(help="an exported folder of this run instead of its own model", show_default=False)
    ] = None,
    role: Annotated[str, typer.Option(help="student or twin")] = "student",
    prompts: Annotated[bool, typer.Option(help="store prompts of the transfer set; a router learns from them")] = True,
    as_json: Json = False,
) -> None:
    """Make an expert of a finished run.

    Example: limbeck experts add runs/my experts --name my --languages en
    """
    with watched() as (on_progress, on_message):
        from limbeck.experts.add import add_expert
        from limbeck.experts.transfer_set import PromptChoice

        choice = PromptChoice(
            name, version, domain, description, tuple(languages), tuple(counter), export, role=role, prompts=prompts
        )
        expert = add_expert(run, _registry(registry), choice, on_progress=on_progress, on_message=on_message)
    done = {"name": expert.name, "version": expert.version, "path": str(expert.path)}
    print_result(done if as_json else f"added {expert.name} {expert.version}: {expert.path}", as_json=as_json)


@app.command("list")
def list_(registry: RegistryFolder, as_json: Json = False) -> None:
    """Every expert with its scores, and what is damaged.

    Example: limbeck experts list experts
    """
    from limbeck.cli.expert_tables import listed
    from limbeck.experts.registry import list_experts

    found = list_experts(_registry(registry))
    print_result(found if as_json else listed(found), as_json=as_json)


@app.command("show")
def show(registry: RegistryFolder, name: Name, version: Version = None, as_json: Json = False) -> None:
    """The card of an expert: its scope, scores with intervals, cost, lineage.

    Example: limbeck experts show experts my
    """
    from limbeck.cli.expert_tables import shown
    from limbeck.experts.registry import show_expert

    found = show_expert(_registry(registry), name, version)
    print_result(found if as_json else shown(found), as_json=as_json)


@app.command("remove")
def remove(
    registry: RegistryFolder,
    name: Name,
    version: Annotated[str, typer.Option("--version", help="which one", show_default=False)],
    as_json: Json = False,
) -> None:
    """Take one version of an expert away.

    Example: limbeck experts remove experts my --version 1.0.0
    """
    _registry(registry).remove(name, version)
    told: dict[str, Any] = {"removed": {"name": name, "version": version}}
    print_result(told if as_json else f"removed {name} {version}", as_json=as_json)


@app.command("verify")
def verify(
    registry: RegistryFolder,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="only this one", show_default=False)] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Hash every file, replay greedy answers, score held-out rows again, and compare with the card.

    Example: limbeck experts verify experts my

    Exit code 1 says that an expert is damaged or not what its card says.
    """
    from limbeck.cli.expert_tables import verified

    with watched() as (on_progress, _):
        from limbeck.experts.add import verify_all

        found, broken = verify_all(_registry(registry), name, version, on_progress=on_progress)
    if as_json:
        lines = [{**asdict(one), "holds": one.holds} for one in found]
        print_result({"experts": lines, "damaged": broken}, as_json=True)
    else:
        print_result(verified(found))
    for reason in broken.values():
        print_error(error_text(reason))
    if broken or not all(one.holds for one in found):
        raise typer.Exit(FAILED)


@app.command("push")
def push(
    registry: RegistryFolder,
    name: Name,
    repo_id: RepoId,
    version: Version = None,
    private: Annotated[bool, typer.Option(help="make a repository that does not exist yet private")] = True,
    as_json: Json = False,
) -> None:
    """Upload an expert to the Hub, with its card. The token comes from HF_TOKEN or `hf auth login`.

    Example: limbeck experts push experts my me/my-expert
    """
    from limbeck.experts.hub import push as push_expert

    where = push_expert(_registry(registry).expert(name, version), repo_id, private=private)
    print_result(
        {"repo": repo_id, "commit": where} if as_json else f"pushed {name} to {repo_id} ({where})", as_json=as_json
    )


@app.command("pull")
def pull(
    repo_id: RepoId,
    registry: RegistryFolder,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit (default: the newest)")] = None,
    as_json: Json = False,
) -> None:
    """Bring an expert from the Hub into a registry, after looking at every file of it.

    Example: limbeck experts pull me/my-expert experts
    """
    from limbeck.experts.hub import pull as pull_expert

    expert = pull_expert(repo_id, _registry(registry), revision=revision)
    done = {"name": expert.name, "version": expert.version, "path": str(expert.path)}
    print_result(done if as_json else f"added {expert.name} {expert.version}: {expert.path}", as_json=as_json)
