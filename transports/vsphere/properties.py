"""Reading named properties. A property that is missing is absent from the answer, never an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pyVmomi import vim, vmodl

from transports.vsphere.session import Connection

_PC: Any = vmodl.query.PropertyCollector
PAGE_OBJECTS: Final = 200

Properties = dict[str, Any]


def read(connection: Connection, obj: Any, *paths: str) -> Properties:
    """Properties of one object. ManagedObjectNotFound when it is gone."""
    for _, properties in read_objects(connection, [obj], type(obj), paths):
        return properties
    raise vmodl.fault.ManagedObjectNotFound(obj=obj, msg=f"{obj} was not found")


def read_objects(
    connection: Connection, objects: Sequence[Any], kind: Any, paths: Sequence[str]
) -> Iterator[tuple[Any, Properties]]:
    """Properties of several objects of one kind."""
    spec = _PC.FilterSpec(
        objectSet=[_PC.ObjectSpec(obj=obj) for obj in objects],
        propSet=[_PC.PropertySpec(type=kind, pathSet=list(paths))],
    )
    yield from _pages(connection, spec)


def read_view(
    connection: Connection, wanted: Iterable[tuple[Any, Sequence[str]]]
) -> Iterator[tuple[Any, Properties]]:
    """Properties of all objects of the given kinds below the root folder, in pages."""
    wanted = list(wanted)
    with _container_view(connection, [kind for kind, _ in wanted]) as view:
        traverse = _PC.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        spec = _PC.FilterSpec(
            objectSet=[_PC.ObjectSpec(obj=view, skip=True, selectSet=[traverse])],
            propSet=[_PC.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in wanted],
        )
        yield from _pages(connection, spec)


@contextmanager
def _container_view(connection: Connection, kinds: Sequence[Any]) -> Iterator[Any]:
    content = connection.content
    view = content.viewManager.CreateContainerView(content.rootFolder, list(kinds), True)
    generation = connection.session.generation
    try:
        yield view
    finally:
        # A view belongs to its session; one that was replaced has taken it along.
        if connection.session.generation == generation:
            view.DestroyView()


def _pages(connection: Connection, spec: Any) -> Iterator[tuple[Any, Properties]]:
    collector = connection.content.propertyCollector
    options = _PC.RetrieveOptions(maxObjects=PAGE_OBJECTS)
    result = _known(connection, lambda: collector.RetrievePropertiesEx([spec], options))
    while result is not None:
        for item in result.objects or []:
            yield item.obj, {entry.name: entry.val for entry in item.propSet or []}
        token = result.token
        result = collector.ContinueRetrievePropertiesEx(token) if token else None


def _known(connection: Connection, ask: Any) -> Any:
    """The answer of `ask`, once more after a new login when it says that nobody is logged in.

    Some servers answer a stranger's property question with NotAuthenticated in each object's list of
    missing properties instead of a fault.
    """
    generation = connection.session.generation
    result = ask()
    if result is not None and any(
        isinstance(getattr(missing.fault, "fault", missing.fault), vim.fault.NotAuthenticated)
        for item in result.objects or []
        for missing in item.missingSet or []
    ):
        connection.session.renew(generation)
        result = ask()
    return result
