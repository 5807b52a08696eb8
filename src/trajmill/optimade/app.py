"""The server: optimade-python-tools' parts around our collections."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from optimade import __api_version__
from optimade.exceptions import BadRequest, NotFound, NotImplementedResponse
from optimade.models import (
    EntryInfoResource,
    EntryInfoResponse,
    EntryResponseMany,
    EntryResponseOne,
    Implementation,
    InfoResponse,
    LinksResource,
    LinksResponse,
    Provider,
    StructureResponseMany,
    StructureResponseOne,
    ToplevelLinks,
)
from optimade.models.baseinfo import BaseInfoAttributes, BaseInfoResource
from optimade.server.config import ServerConfig
from optimade.server.exception_handlers import OPTIMADE_EXCEPTIONS
from optimade.server.mappers import BaseResourceMapper, StructureMapper
from optimade.server.middleware import OPTIMADE_MIDDLEWARE
from optimade.server.query_params import EntryListingQueryParams, SingleEntryQueryParams
from optimade.server.routers import landing, versions
from optimade.server.routers.utils import (
    BASE_URL_PREFIXES,
    JSONAPIResponse,
    get_base_url,
    get_entries,
    get_single_entry,
    meta_values,
)
from optimade.server.schemas import retrieve_queryable_properties

from trajmill.optimade.entries import Entries, TrajectoryMapper, TrajectoryResource
from trajmill.optimade.index import Index
from trajmill.optimade.properties import describe, of_structures, of_trajectories

ABOUT = "Relaxation trajectories and their final structures, put together by trajmill."


class TrajectoryResponseMany(EntryResponseMany):  # type: ignore[misc]  # mypy does not follow optimade
    """Answer with several trajectories."""

    data: list[TrajectoryResource] | list[dict[str, Any]]


class TrajectoryResponseOne(EntryResponseOne):  # type: ignore[misc]  # mypy does not follow optimade
    """Answer with a trajectory."""

    data: TrajectoryResource | dict[str, Any] | None


class SingleParameters(SingleEntryQueryParams):  # type: ignore[misc]  # mypy does not follow optimade
    """Parameters of a query for one entry, with OPTIMADE 1.3's `dimension_slices`, which is answered with 501."""

    dimension_slices = ""


def make_app(index: Index, prefix: str) -> FastAPI:
    """Return the server of an index, which answers below /, /v1, /v1.2 and /v1.2.0.

    Args:
        index: of what it serves.
        prefix: of properties that OPTIMADE does not define.
    """
    config = ServerConfig(
        insert_test_data=False,
        provider=Provider(prefix=prefix, name="trajmill", description=ABOUT),
        implementation=Implementation(name="trajmill", version=version("trajmill")),
    )
    schema = index.pieces.schema
    major = BASE_URL_PREFIXES["major"]
    app = FastAPI(
        root_path=config.root_path,
        title="OPTIMADE API",
        description=ABOUT,
        version=__api_version__,
        docs_url=f"{major}/extensions/docs",
        redoc_url=None,
        openapi_url=f"{major}/extensions/openapi.json",
        default_response_class=JSONAPIResponse,
    )
    app.state.config = config
    app.state.base_resource_mapper = BaseResourceMapper(config)
    app.state.entry_collections = {
        "structures": Entries(index, StructureMapper(config), of_structures(schema, prefix), config),
        "trajectories": Entries(index, TrajectoryMapper(config), of_trajectories(schema, prefix), config),
    }
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    for middleware in OPTIMADE_MIDDLEWARE:
        app.add_middleware(middleware)
    for exception, handler in OPTIMADE_EXCEPTIONS:
        app.add_exception_handler(exception, handler)
    for base in ("", *BASE_URL_PREFIXES.values()):
        for router in (_router(), landing.router):
            app.include_router(router, prefix=base, include_in_schema=base == "")
    app.include_router(versions.router)
    return app


def _router() -> APIRouter:
    router = APIRouter()
    get = {"methods": ["GET"], "response_model_exclude_unset": True}
    router.add_api_route("/info", _info, response_model=InfoResponse, **get)
    router.add_api_route("/info/{entry}", _entry_info, response_model=EntryInfoResponse, **get)
    router.add_api_route("/links", _links, response_model=LinksResponse, **get)
    router.add_api_route("/structures", _listing("structures"), response_model=StructureResponseMany, **get)
    router.add_api_route(
        "/structures/{entry_id:path}", _single("structures"), response_model=StructureResponseOne, **get
    )
    router.add_api_route("/trajectories", _listing("trajectories"), response_model=TrajectoryResponseMany, **get)
    router.add_api_route(
        "/trajectories/{entry_id:path}", _single("trajectories"), response_model=TrajectoryResponseOne, **get
    )
    return router


def _listing(name: str) -> Any:
    def listing(request: Request, params: Annotated[EntryListingQueryParams, Depends()]) -> dict[str, Any]:
        _without_related(params)
        return get_entries(request.app.state.entry_collections[name], request, params)  # type: ignore[no-any-return]

    return listing


def _single(name: str) -> Any:
    def single(request: Request, entry_id: str, params: Annotated[SingleParameters, Depends()]) -> dict[str, Any]:
        _without_related(params)
        if request.query_params.get("dimension_slices"):
            raise NotImplementedResponse(detail="dimension_slices: all frames come at once")
        return get_single_entry(request.app.state.entry_collections[name], entry_id, request, params)  # type: ignore[no-any-return]

    return single


def _without_related(params: EntryListingQueryParams | SingleEntryQueryParams) -> None:
    """Refuse entries that are related to those asked for: there are none."""
    if params.include not in ("", "references"):
        raise BadRequest(detail=f"include={params.include}: no entries of this type are related to others")
    params.include = ""


def _info(request: Request) -> InfoResponse:
    names = list(request.app.state.entry_collections)
    base = get_base_url(request.app.state.config, request.url)
    attributes = BaseInfoAttributes(
        api_version=__api_version__,
        available_api_versions=[{"url": f"{base}{BASE_URL_PREFIXES['major']}", "version": __api_version__}],
        formats=["json"],
        available_endpoints=["info", "links", *names],
        entry_types_by_format={"json": names},
        is_index=False,
    )
    return InfoResponse(meta=_meta(request), data=BaseInfoResource(attributes=attributes, id="/", type="info"))


def _entry_info(request: Request, entry: str) -> EntryInfoResponse:
    collections: Mapping[str, Entries] = request.app.state.entry_collections
    if entry not in collections:
        raise NotFound(detail=f"there are no {entry}, but {' and '.join(collections)}")
    collection = collections[entry]
    described = retrieve_queryable_properties(collection.resource_cls, {"id", "type", "attributes"})
    described["type"] |= {"description": "The name of the type of an entry.", "type": "string"}  # else a list
    for name, about in described.items():
        about["sortable"] = name in collection.properties and collection.properties[name].sortable
    described |= {
        name: describe(known, collection.by_frame) for name, known in collection.properties.items() if name[0] == "_"
    }
    info = EntryInfoResource(
        id=entry,
        type="info",
        formats=["json"],
        description=collection.resource_cls.__doc__,
        properties=described,
        output_fields_by_format={"json": list(described)},
    )
    return EntryInfoResponse(meta=_meta(request), data=info)


def _links(request: Request, params: Annotated[EntryListingQueryParams, Depends()]) -> LinksResponse:
    if params.filter:
        raise NotImplementedResponse(detail="filter: there is one link, which needs none")
    base = get_base_url(request.app.state.config, request.url)
    about = {"name": "trajmill", "description": ABOUT, "base_url": base, "homepage": None, "link_type": "root"}
    root = LinksResource(id="trajmill", type="links", attributes=about)
    return LinksResponse(data=[root], meta=_meta(request), links=ToplevelLinks(next=None))


def _meta(request: Request) -> Any:
    config = request.app.state.config
    return meta_values(config, request.url, 1, 1, more_data_available=False, schema=config.schema_url)
